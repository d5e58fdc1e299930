"""The sections of a report: their order, one sentence each, and which figures stand in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """short stands in the navigation, title and lead above the section.

    figures: names of plots.PLOTS in their order.
    record: what to set or run where nothing of it was recorded. several: only of several runs.
    """

    name: str
    short: str
    title: str
    lead: str
    figures: tuple[str, ...] = ()
    record: str = ""
    several: bool = False


SECTIONS = (
    Section(
        "methods", "Methods", "Methods compared",
        "Where each method ends, over its seeds.",
        ("methods_summary", "methods_curves", "method_changes", "accuracy_entropy", "benchmarks",
         "lambda_min", "clip_sweep", "scope_runs"),
        "Give several runs: entropy-lab analyze RUN_DIR RUN_DIR …", several=True,
    ),
    Section(
        "happened", "What happened", "What happened",
        "Entropy, reward and measured entropy change along training.",
        ("entropy_reward", "train_heldout"),
        "metrics.jsonl holds no entropy: record each step with probe.enabled = true.",
    ),
    Section(
        "method", "Method", "What the method did",
        "How many tokens the method clipped, selected or reweighted.",
        ("weight_collapse", "extreme_clipping", "mapping", "scope_effect", "entropy_target"),
        "The log has no touched_share: the bundled trainer writes it; in a loop of your own call "
        "probe.annotate(weight=…, flags=…).",
    ),
    Section(
        "trust", "Predictions", "Which prediction to trust, and how far",
        "Every prediction of a token's entropy change against the change that was measured.",
        ("predicted_vs_actual", "calibration", "estimators", "factors"),
        "No token has both a prediction and a measured change: record with probe.enabled = true "
        "(importers bring no dH; only a probe around the step measures it).",
    ),
    Section(
        "errors", "Errors", "Where the predictions go wrong",
        "What each simplification costs, from the crudest form to the exact first order.",
        ("error_budget", "layer_shares"),
        "Needs deep steps: record with probe.deep_every = 10 (Probe(…, deep_every=10)).",
    ),
    Section(
        "push", "Influence", "Whose push it was",
        "Each score against what a token's own push, and its weight, did to entropy.",
        ("influence_scores",),
        "Needs deep steps: record with probe.deep_every = 10 (Probe(…, deep_every=10)).",
    ),
    Section(
        "tokens", "Tokens", "Which tokens did it",
        "Where the change of entropy comes from, by kind of token.",
        ("quadrants", "regions", "change_distribution", "plane", "words"),
        "Needs token rows with a measured change: record with probe.enabled = true.",
    ),
    Section(
        "sums", "Sums", "Do the predictions add up",
        "Sums of predictions along training against the entropy of a fixed set of responses.",
        ("drift",),
        "Needs a fixed probe set: record with probe.fixed_responses = 64 (probe.fix(…)).",
    ),
    Section(
        "evaluations", "Held-out", "Held-out problems",
        "How often problems that were never trained on are solved.",
        ("pass_at_k",),
        "Needs evaluations: record with eval.every = 10 and task.held_out_share = 0.1.",
    ),
    Section(
        "replay", "Other methods", "What another method would have done",
        "Every method's own real step from the same states.",
        ("replay",),
        "Needs replay points: record with train.replay_every = 5, then entropy-lab audit RUN_DIR "
        "--replay --method all, then analyze again.",
    ),
)  # fmt: skip
MORE = Section("more", "More", "More figures", "Drawn from the same tables.")
# Headings of figures; another one's is its name.
TITLES = {
    "entropy_reward": "Entropy and reward",
    "predicted_vs_actual": "Predicted against measured",
    "calibration": "Are the sizes right",
    "error_budget": "Error budget",
    "influence_scores": "Scores against influence",
    "quadrants": "By sign of the push and likelihood",
    "regions": "Where the change lives",
    "drift": "Sums against the fixed set",
    "methods_summary": "Which method ends where",
    "methods_curves": "How they got there",
    "replay": "Steps from the same states",
    "train_heldout": "Own tokens against held-out ones",
    "weight_collapse": "How large the weights are",
    "extreme_clipping": "Clipping at its extremes",
    "mapping": "How scores become weights",
    "scope_effect": "What a smaller batch would change",
    "entropy_target": "Target against realised change",
    "estimators": "Estimators side by side",
    "factors": "What weights depend on",
    "layer_shares": "Which layers moved it",
    "change_distribution": "How large the changes are",
    "plane": "Probability and entropy",
    "words": "Which words",
    "pass_at_k": "pass@k along training",
    "method_changes": "What each method changes",
    "accuracy_entropy": "Accuracy against entropy",
}
OVER_METHODS = ("methods_summary", "methods_curves", "drift")  # legible with any number of runs


def heading(figure: str) -> str:
    """How a figure is headed."""
    return TITLES.get(figure, figure.replace("_", " ").capitalize())


def sections(figures: Iterable[str]) -> list[Section]:
    """All sections; figures that no section names stand in a last one."""
    named = {figure for section in SECTIONS for figure in section.figures}
    rest = tuple(figure for figure in figures if figure not in named)
    return [*SECTIONS, Section(MORE.name, MORE.short, MORE.title, MORE.lead, rest)]
