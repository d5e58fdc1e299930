"""Checks of the measurement itself, from the steps table: audit, repeat, floor, means, settings."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from entropy_lab.analysis.doctor.facts import Facts
from entropy_lab.analysis.doctor.finding import Verdict


def _largest(values: pd.Series) -> tuple[float, int]:
    """The largest finite value and its step; (NaN, -1) without one."""
    known = values.dropna()
    if known.empty:
        return math.nan, -1
    at = int(known.to_numpy().argmax())
    return float(known.iloc[at]), int(known.index.to_numpy()[at])


def gradient_audit(facts: Facts) -> Verdict | None:
    """The share of the gradient that does not pass through logp and entropy."""
    if facts.steps.empty:
        return None
    worst, step = _largest(facts.step_column("gradient_audit"))
    if math.isnan(worst):
        return Verdict(
            "note", "no gradient audit was recorded", "nobody knows whether closed forms see all "
            "of the gradient", "record with probe.floor_every above 0",
        )  # fmt: skip
    if worst <= 1e-3:
        return Verdict("ok", f"at most {worst:.1g} of the gradient bypasses logp and entropy")
    return Verdict(
        "error" if worst > 1e-2 else "warning",
        f"{worst:.1%} of the gradient of step {step} does not pass through the logged logp and "
        "entropy (limit 0.1 %)",
        "dH is right, but grad_logp, closed forms and influence miss that part: an auxiliary "
        "loss, a full-vocabulary KL, a shifted mask, or gradients left from an earlier step",
        "switch the auxiliary term off, or read closed forms as estimates of a part of the step",
    )


def repeat(facts: Facts) -> Verdict | None:
    worst, step = _largest(facts.step_column("repeat_max"))
    if math.isnan(worst):
        return None
    if worst == 0:
        return Verdict("ok", "measuring twice without a step between gives equal bits")
    return Verdict(
        "error" if worst > 1e-5 else "warning",
        f"measuring twice in step {step} without an optimizer step differs by up to {worst:.1e} "
        "nats",
        "before and after do not run one code path; some of every dH is this difference",
        "switch off dropout and nondeterministic kernels in score, and random padding",
    )


def loss_forward(facts: Facts) -> Verdict | None:
    """Whether the loss forward was bitwise the pass before the step, and whether dropout is on."""
    data = facts.steps
    if "before_is_loss_forward" not in data or "probed" not in data:
        return None
    probed = data[data["probed"].astype(bool)]
    if probed.empty:
        return None
    dropout = int(probed["dropout_off"].astype(bool).sum()) if "dropout_off" in probed else 0
    if dropout:
        return Verdict(
            "note",
            f"dropout is active in the loss of {dropout} of {len(probed)} probed steps",
            "H and dH are of the model without dropout, grad_logp is of the loss with it",
            "set dropout to 0 for RL, as most trainers do",
        )
    own = int((~probed["before_is_loss_forward"].astype(bool)).sum())
    if own and facts.cadence.get("fraction", 1) == 1:
        return Verdict(
            "note",
            f"in {own} of {len(probed)} probed steps the loss forward was not bitwise equal to "
            "a pass without gradients",
            "the probe ran passes of its own for both sides; dH is not affected",
        )
    return Verdict("ok", "the pass before the step is the loss forward, or both are own passes")


def floor(facts: Facts) -> Verdict | None:
    """The noise floor against the spread of dH: ceiling sqrt(1 - floor^2 / var dH)."""
    floors = facts.step_column("floor").dropna()
    if floors.empty or facts.per_step.empty:
        return None
    rows = facts.per_step.set_index("step").reindex(floors.index)
    ratio = (floors / rows["dH_std"]).replace([np.inf, -np.inf], np.nan).dropna()
    ratio = ratio[rows["dH_rms"].reindex(ratio.index) > 0]
    if ratio.empty:
        return None
    worst, step = _largest(ratio)
    middle = float(ratio.median())
    ceiling = math.sqrt(max(0.0, 1 - middle**2))
    bias = (facts.step_column("bias").abs() / rows["dH"].abs()).dropna()
    seen = (
        f"noise floor {float(floors.median()):.1g} nats, {middle:.1g} of the spread of dH "
        f"(median of {len(ratio)} steps; {worst:.1g} in step {step}): no correlation with dH can "
        f"exceed {ceiling:.3f}"
    )
    if middle < 0.1 and not (len(bias) and bias.median() > 0.1):
        return Verdict("ok", seen)
    if middle < 0.1:
        seen += f"; its mean is {float(bias.median()):.0%} of the mean dH"
    return Verdict(
        "error" if middle >= 0.7 else "warning",
        seen,
        "dH is measured with an error that is not small beside it: rounding, or a pass after the "
        "step that is not the pass before",
        "set probe.dtype to float32 (bfloat16 rounding is 1e-3 nats), look at steps of larger lr, "
        "and check that both passes see the same padding and no dropout",
    )


def identity(facts: Facts) -> Verdict | None:
    worst, step = _largest(facts.step_column("identity_error"))
    if math.isnan(worst):
        return None
    if worst <= 1e-3:
        return Verdict("ok", f"influence, momentum and decay add up to G.delta within {worst:.1g}")
    return Verdict(
        "error" if worst > 1e-2 else "warning",
        f"influence, momentum and decay miss G.delta by {worst:.1g} of their absolute sum in "
        f"step {step}",
        "influence is not the account of the step that was taken",
        "check the gradient audit, kappa (probe.note), and that nothing else moves the weights",
    )


def splits(facts: Facts) -> Verdict | None:
    """jvp against the sum of its parts, in the means of deep steps."""
    names = [f"dH_pred_jvp{part}" for part in ("", "_grad", "_momentum", "_decay")]
    parts = [facts.step_column(n).dropna() for n in names]
    if any(p.empty for p in parts):
        return None
    data = pd.concat(parts, axis=1).dropna()
    values = data.to_numpy()
    size, rest = np.abs(values).sum(1), np.abs(values[:, 0] - values[:, 1:].sum(1))
    share = np.divide(rest, size, out=np.zeros_like(rest), where=size > 0)
    off, step = _largest(pd.Series(share, index=data.index))
    if not off > 1e-2:
        return Verdict("ok", f"the parts of jvp add up within {off:.1g}")
    return Verdict(
        "warning",
        f"the parts of jvp miss it by {off:.1%} in step {step}",
        "something beside gradient, momentum and decay moved the weights",
        "look for an average of weights, or a change between two optimizer steps",
    )


def fixed_chain(facts: Facts) -> Verdict | None:
    """entropy_fixed + dH_fixed against entropy_fixed of the next step."""
    entropy, change = facts.step_column("entropy_fixed"), facts.step_column("dH_fixed")
    if entropy.empty or change.empty:
        return None
    after = (entropy + change).dropna()
    after.index += 1
    both = after.index.intersection(entropy.dropna().index)
    if not len(both):
        return None
    off = (after[both] - entropy[both]).abs()
    rms, signal = (math.sqrt(float((x**2).mean())) for x in (off, change.dropna()))
    if rms <= 1e-5 + 0.01 * signal:
        return Verdict("ok", f"the fixed set's changes add up over {len(both)} steps")
    worst, step = _largest(off)
    return Verdict(
        "error" if rms > 1e-5 + 0.05 * signal else "warning",
        f"the fixed set's entropy before step {step} is {worst:.1g} nats from that after the step "
        f"before (rms {rms:.1g} of {len(both)}, rms change {signal:.1g})",
        "no weight moved between the two: the pass after a step differs from the pass before it, "
        "or steps are missing",
        "both passes must run one code path; something else may also move the weights",
    )


_MEANS = (("dH", "dH_train"), ("entropy", "entropy_token_mean"), ("clip_high", "clip_high_frac"),
          ("clip_low", "clip_low_frac"))  # fmt: skip


def step_means(facts: Facts) -> Verdict | None:
    """Means over token rows against the means that the steps table states."""
    if facts.per_step.empty or facts.steps.empty or len(facts.ranks) > 1:
        return None
    rows = facts.per_step.set_index("step")
    whole = facts.step_column("inclusion_prob").reindex(rows.index) == 1
    if "dropout_off" in facts.steps:
        whole &= facts.step_column("dropout_off").reindex(rows.index) != 1
    compared = 0
    for ours, theirs in _MEANS:
        said = facts.step_column(theirs).reindex(rows.index)[whole].dropna()
        if said.empty:
            continue
        compared += 1
        mean = rows[ours].reindex(said.index)
        off = (mean - said).abs()
        bad = ~(off <= 1e-5 + 1e-3 * said.abs())
        if bad.any():
            step = int(bad.index.to_numpy()[bad.to_numpy().argmax()])
            return Verdict(
                "error",
                f"{theirs} differs from the mean of its token rows in {int(bad.sum())} of "
                f"{len(said)} steps (step {step}: {said[step]:.6g}, rows {mean[step]:.6g})",
                "the rows are not those that the step's numbers were taken from: lost, doubled, "
                "edited, or the loss saw other rows than the probe",
                "do not edit parts; record again",
            )
    return Verdict("ok", f"{compared} means of the steps table equal those of the rows") \
        if compared else None  # fmt: skip


def temperature(facts: Facts) -> Verdict:
    stated = facts.run.meta.get("temperature")
    sampling = facts.config.get("rollout") or {}
    wanted = sampling.get("temperature")
    if stated is None:
        return Verdict(
            "warning", "the files state no temperature",
            "nobody can tell which distribution's entropy this is",
            "pass temperature= to Probe, the one of the sampler",
        )  # fmt: skip
    if wanted is not None and not math.isclose(float(stated), float(wanted)):
        return Verdict(
            "error",
            f"scored at temperature {stated}, sampled at {wanted}",
            "H and logp are of another distribution than the one that generated",
            "score with the sampling temperature",
        )
    cut = {k: sampling[k] for k in ("top_p", "top_k", "min_p") if sampling.get(k)}
    if cut.get("top_p") == 1:
        cut.pop("top_p")
    if cut:
        return Verdict(
            "warning",
            f"the sampler cuts the distribution: {cut}",
            "H is of the whole softmax, not of what was sampled from",
            "sample with top_p = 1 and without top_k, or keep it in mind",
        )
    return Verdict("ok", f"temperature {stated}")


def inclusion(facts: Facts) -> Verdict | None:
    """Inclusion probabilities in (0, 1], in steps and in samples."""
    bad = total = 0
    for values in (facts.step_column("inclusion_prob"), facts.samples.get("inclusion_prob")):
        if values is None:
            continue
        known = pd.to_numeric(values, errors="coerce").dropna()
        total += len(known)
        bad += int((~known.between(0, 1, inclusive="right")).sum())
    if not total:
        return None
    if not bad:
        return Verdict("ok", "inclusion probabilities lie in (0, 1]")
    return Verdict(
        "error", f"{bad} of {total} inclusion probabilities lie outside (0, 1]",
        "weighted means divide by them", "store the chance with which the response was probed",
    )  # fmt: skip
