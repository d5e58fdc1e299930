"""Why an item cannot be drawn, and the command that records what it needs."""

from __future__ import annotations

from entropy_lab.errors import RunError

_PROBE = "entropy-lab train --set probe.enabled=true"
_DEEP = "entropy-lab train --set probe.deep_every=10"
_EVAL = "entropy-lab train --set eval.every=10 --set task.held_out_share=0.1, or entropy-lab eval"
_TOKENS = ("the log has no measured dH (token rows were not recorded, or another tool made it)",
           f"{_PROBE}, or the Probe in a loop of your own")  # fmt: skip
_SEVERAL = ("it compares methods", "entropy-lab analyze RUN RUN ... over runs of several")
_AUDIT = "entropy-lab audit RUN --method steer --method clip_cov"
# Table -> (why it has no row, the command that makes some).
_WHY = {
    **dict.fromkeys(
        ("validation", "density", "density_panels", "calibration", "quadrants", "regions",
         "distribution", "plane", "words", "words_change"),
        _TOKENS,
    ),
    "budget": ("no deep step was recorded", _DEEP),
    "influence": ("no deep step was recorded", _DEEP),
    "layers": ("no deep step was recorded", _DEEP),
    "weight_steps": ("the log has no dH, weight or dH_pred_steer", _PROBE),
    "weights": ("the log has no dH, weight or dH_pred_steer", _PROBE),
    "train_heldout": ("no step has both dH_train and dH_heldout",
                      "entropy-lab train --set probe.held_out=true"),
    "targets": ("no run has a method with a target of its step's entropy change",
                "entropy-lab train --set method.name=entropy_target --set probe.deep_every=0"),
    "target_sums": ("no run has a method with a target of its step's entropy change",
                    "entropy-lab train --set method.name=entropy_target --set probe.deep_every=0"),
    "pass_at_k": ("no run was evaluated", _EVAL),
    "benchmarks": ("no run was evaluated", _EVAL),
    "drift": ("no fixed probe set was measured", _PROBE),
    "methods": _SEVERAL,
    "method_curves": _SEVERAL,
    "predictor_seeds": _SEVERAL,
    "audit": ("no method was run on the logged tokens", _AUDIT),
    "audit_touched": ("no method was run on the logged tokens", _AUDIT),
    "audit_scope": ("no method was run on the logged tokens", _AUDIT),
    "replay": ("no method was replayed", "entropy-lab audit RUN --replay --method all"),
    "replay_pairs": ("no method was replayed", "entropy-lab audit RUN --replay --method all"),
}  # fmt: skip


class Lacking(RunError):
    """The tables have nothing for this item; the text says why and which command makes it."""


def no_rows(name: str, table: str) -> Lacking:
    """The item `name` needs rows in `table` and it has none."""
    why, command = _WHY.get(table, ("nothing was recorded for it", "entropy-lab analyze RUN"))
    return Lacking(
        f"{name} needs rows in {table}.parquet and it has none: {why}; record it with: {command}"
    )


def without(name: str, why: str, command: str) -> Lacking:
    """The tables have rows, but not what `name` compares."""
    return Lacking(f"{name} has nothing to draw: {why}; make it with: {command}")
