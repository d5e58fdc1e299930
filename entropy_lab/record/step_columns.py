"""The columns of steps/ and the keys of metrics.jsonl: units and meanings.

<quadrant> stands for pos_likely, pos_unlikely, neg_likely, neg_unlikely and zero (the sign of the
advantage, and whether logp is above -entropy); <form> for a closed form, <path form> for one of the
deep steps, <group> for a group of layers (embed, layer_00, ..., final, head), <name> for what a
method or a loop calls it. Means are over valid tokens unless another unit is named.
"""

from __future__ import annotations

Described = dict[str, tuple[str, str]]  # name: (unit, meaning)

BOTH: Described = {
    "step": ("steps", "optimizer step"),
    "age": ("steps", "optimizer steps since the rollout"),
    "lr": ("", "learning rate; over parameter groups, the mean weighted by size"),
    "entropy_token_mean": ("nats", "mean entropy of the step's tokens in the loss forward"),
    "entropy_seq_mean": ("nats", "mean over responses of their mean entropy"),
    "clip_high_frac": ("", "share of tokens clipped from above"),
    "clip_low_frac": ("", "share of tokens clipped from below"),
    "dual_clip_frac": ("", "share of tokens at the dual clip"),
    "touched_share": ("", "share of tokens that the method clipped, selected or reweighted"),
    "dH_train": ("nats", "mean dH over probed tokens, weighted by 1 / inclusion_prob"),
    "dH_heldout": ("nats", "the same over rows that the step did not train on"),
    "dH_fixed": ("nats", "the same over the fixed probe set"),
    "entropy_fixed": ("nats", "mean entropy of the fixed probe set before the step"),
    "kappa": ("", "factor of gradient clipping: the loop's own, or fitted by the gradient audit"),
    "gradient_audit": ("", "share of the gradient that does not pass through logp and entropy"),
    "rollout": ("", "rollout number"),
    "grad_norm": ("", "gradient norm before clipping, where the loop notes it"),
    "method_<name>": ("", "what the method says of the step: means, thresholds, its memory"),
    "probe_failed": ("", "kind of the event for which a step that was due has no dH"),
}
STEP_COLUMNS: Described = {
    **BOTH,
    "probed": ("", "whether token rows of the step were measured"),
    "n_tokens": ("tokens", "valid tokens of the step"),
    "n_probed": ("tokens", "of those, measured"),
    "inclusion_prob": ("", "lowest chance of a response to be among the probed ones"),
    "before_is_loss_forward": ("", "whether the loss forward served as the first pass"),
    "dropout_off": ("", "dropout was active in training and off in both passes"),
    "share_<quadrant>": ("", "share of the tokens in a quadrant"),
    "entropy_<quadrant>": ("nats", "mean entropy in it"),
    "dH_<quadrant>": ("nats", "mean dH in it"),
    "dH_pred_<form>": ("nats", "mean of what a closed form predicts, on all tokens of the step"),
    "dH_pred_<form>_<quadrant>": ("nats", "the same in a quadrant"),
    "local_train": ("nats a response", "change of E[sum H] at the states where the tokens stand"),
    "visitation_train": ("nats a response", "change of E[sum H] by other tokens coming next"),
    "effective_train": ("responses", "effective number behind both"),
    "local_heldout": ("nats a response", "as local_train, over held-out rows"),
    "visitation_heldout": ("nats a response", "as visitation_train, over held-out rows"),
    "effective_heldout": ("responses", "effective number behind both"),
    "repeat_max": ("nats", "largest change of an entropy when the first pass is made again"),
    "floor": ("nats", "rms of the rounding noise of a dH, against float64"),
    "bias": ("nats", "mean of that noise"),
    "floor_rows": ("tokens", "rows that both were taken from"),
    "moved_share": ("", "share of the weights that the step changed"),
    "moved_share_bfloat16": ("", "the same of the weights rounded to bfloat16"),
    "dH_float32": ("nats", "mean dH of the responses measured again in float32"),
    "dH_float32_same": ("nats", "their mean dH as all rows were measured"),
    "rounding": ("nats", "rms of the difference, token by token"),
    "float32_rows": ("tokens", "rows measured again"),
    "G_dtheta": ("nats", "first-order change of the mean entropy, G . delta"),
    "influence_sum": ("nats", "sum of influence over the tokens of the step"),
    "momentum_term": ("nats", "part of G . delta due to earlier gradients"),
    "decay_term": ("nats", "part of G . delta due to weight decay"),
    "other_term": ("nats", "what is left of G . delta"),
    "identity_error": ("", "|other_term| over the sum of the absolute terms"),
    "layer_<group>": ("nats", "part of G . delta in a group of layers"),
    "dH_pred_<path form>": ("nats", "mean of a path form over probed tokens"),
    "slope_error": ("nats", "mean estimated error of dH_pred_slope"),
    "heldout_source": ("", "which rows dH_heldout is of: given, next_minibatch, fixed"),
    "measured_in": ("", "dtype of the two passes"),
    "policy": ("", "master: weights as they are; cast: rounded to the training dtype"),
}
METRIC_COLUMNS: Described = {
    **BOTH,
    "alarm": ("", "entropy halves within 100 steps at the present slope"),
    "alarm_slope": ("nats a step", "slope of entropy_token_mean over the last 24 steps"),
    "alarm_half_steps": ("steps", "until entropy halves; null while it does not fall"),
    "alarm_quadrant": ("", "quadrant with the lowest summed dH in these steps"),
    "time_probe": ("s", "in the probe"),
    "time_update": ("s", "from the first loss forward of the step to its end, the probe included"),
    "tokens_through": ("steps", "the step through which all rows are on disk"),
    "reward": ("", "mean reward (bundled trainer)"),
    "response_length": ("tokens", "mean length (bundled trainer)"),
    "truncated_share": ("", "share of responses without an end (bundled trainer)"),
    "rollout_logp_diff": ("nats", "mean |trainer's logp - sampler's| (bundled trainer)"),
    "rollout_logp_diff_max": ("nats", "largest of them (bundled trainer)"),
    "rollout_kl": ("nats", "KL(sampler | trainer), k3 estimate (bundled trainer)"),
    "rollout_kl_k1": ("nats", "the same, k1 estimate (bundled trainer)"),
    "rollout_weight_<name>": ("", "mean, min, max of the correction (bundled trainer)"),
    "time_rollout": ("s", "sampling, a step's share (bundled trainer)"),
    "time_step": ("s", "the whole step (bundled trainer)"),
    "time_eval": ("s", "evaluations before the step (bundled trainer)"),
}
EVENT_COLUMNS: Described = {
    "step": ("steps", "optimizer step"),
    "kind": ("", "what failed; see troubleshooting.md"),
    "error": ("", "type of the exception, empty where none was raised"),
    "reason": ("", "its text"),
    "time": ("", "UTC"),
    "rank": ("", "process that met it"),
}
