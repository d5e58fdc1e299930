"""Checks of the files: parts, ranks, steps and samples that should be there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from entropy_lab.analysis.doctor.facts import Facts
from entropy_lab.analysis.doctor.finding import Verdict
from entropy_lab.record.parts import rank_folder
from entropy_lab.record.schema import CORE_FLOATS


def status(facts: Facts) -> Verdict:
    said = facts.run.info.get("status")
    if facts.finished:
        return Verdict("ok", f"finished after step {facts.run.last_step}")
    return Verdict(
        "warning" if said == "failed" else "note",
        f"the run is {said!r}: rows up to step {facts.run.last_step} count",
        "the last steps may not be on disk yet",
        "" if said == "running" else "continue it with entropy-lab train --resume",
    )


def damaged(facts: Facts) -> Verdict:
    """Parts that cannot be read, in the footer or in the data."""
    found = [f"{path.name} ({why})" for path, why in facts.run.damaged] + facts.unread
    if not found:
        return Verdict("ok", "every file can be read")
    return Verdict(
        "error",
        f"{len(found)} damaged: {_some(found)}",
        "their rows are missing from everything that was checked here",
        "restore the files from a copy, or rewind the run to before them and resume",
    )


def dropped_windows(facts: Facts) -> Verdict:
    count = int(facts.run.info.get("dropped_windows") or 0)
    if not count:
        return Verdict("ok", "no window of rows was dropped")
    return Verdict(
        "warning",
        f"{count} windows of token rows were dropped while training",
        "the disk was slower than the training; those steps have no rows",
        "log less (probe.every, profile = \"core\"), use a faster disk, or on_full = \"block\"",
    )  # fmt: skip


def events(facts: Facts) -> Verdict:
    """What the probe itself says went wrong while measuring."""
    found = facts.run.events()
    if found.empty:
        return Verdict("ok", "nothing went wrong while measuring")
    counts = found["kind"].value_counts()
    worst = found[found["error"] != ""]
    first = (found if worst.empty else worst).iloc[0]
    why = " ".join(filter(None, [first["error"], first["reason"]]))[:200]
    return Verdict(
        "warning" if len(worst) else "note",
        f"{len(found)} events: {', '.join(f'{kind} {n}' for kind, n in counts.items())}; the first "
        f"at step {first['step']}: {why}",
        "those steps have no dH, or lack a part of what is measured",
        "read load(run).events(); docs/troubleshooting.md has the kinds",
    )


def columns(facts: Facts) -> Verdict | None:
    """The columns that every profile logs."""
    if not facts.run.token_files:
        return None
    lacking = [name for name in CORE_FLOATS if name not in facts.run.columns("tokens")]
    if not lacking:
        return Verdict("ok", "all columns of the core profile")
    return Verdict(
        "warning",
        f"token rows lack {', '.join(lacking)}",
        "the checks that read them were left out, and so is part of the analysis",
        "fill them in where the log was imported",
    )


def ranks(facts: Facts) -> Verdict | None:
    """A folder of rows for each rank, all with the same steps."""
    if not facts.ranks:
        return None
    world = int(facts.run.info.get("world_size") or facts.ranks[-1] + 1)
    told = facts.run.info.get("ranks") or []
    # A rank without a micro-batch of its own has written no rows, but it has a folder.
    here = {r for r in range(world) if told and rank_folder(facts.run.path, "tokens", r).is_dir()}
    missing = sorted(set(range(world)) - set(facts.ranks) - here)
    do = "copy the folders tokens/rank=* and samples/rank=* of every machine into the run"
    if missing:
        return Verdict(
            "error",
            f"no token rows of rank {_some(missing)}; {len(facts.ranks)} of {world} ranks are here",
            "every mean is of a part of the responses, and not a random part",
            do,
        )
    if told:
        # Which of them had rows in a step is for the micro-batches to say; `samples` counts rows.
        sizes = ", then ".join(str(size) for _, size in told)
        return Verdict("ok", f"{sizes} ranks, with a folder of rows each")
    spans = {rank: _steps_of(facts, rank) for rank in facts.ranks}
    every = set().union(*spans.values())
    short = {rank: sorted(every - steps) for rank, steps in spans.items() if steps != every}
    if short:
        rank, steps = next(iter(short.items()))
        return Verdict(
            "error",
            f"rank {rank} lacks the rows of {len(steps)} steps that others have: {_some(steps)}",
            "those steps are averaged over fewer ranks than the others",
            do,
        )
    return Verdict("ok", f"{world} {'rank' if world == 1 else 'ranks'}, the same steps of each")


def _steps_of(facts: Facts, rank: int) -> set[int]:
    if len(facts.ranks) == 1:
        return set(facts.run.steps_probed)
    found: set[int] = set()
    for path in facts.run.token_files:
        if path.parent.name == f"rank={rank:04d}":
            try:
                found |= set(pq.read_table(path, columns=["step"])["step"].unique().to_pylist())
            except (OSError, pa.ArrowException):
                continue  # `damaged` says so
    return {step for step in found if step <= (facts.run.last_step or 0)}


def steps(facts: Facts) -> Verdict:
    """One line of metrics.jsonl and one row of steps/ for every step from 0 on."""
    lines = [int(s) for s in facts.run.metrics()["step"]]
    expected = range(lines[-1] + 1)
    gaps = sorted(set(expected) - set(lines))
    twice = len(lines) - len(set(lines))
    rows = [int(s) for s in facts.steps["step"]] if "step" in facts.steps else []
    last = lines[-1] if facts.finished else max(rows, default=-1)
    holes = sorted(set(range(last + 1)) - set(rows))
    twice += len(rows) - len(set(rows))
    if not (gaps or twice or holes):
        return Verdict("ok", f"{len(lines)} steps without a gap")
    return Verdict(
        "error",
        f"metrics.jsonl lacks {len(gaps)} steps{_first(gaps)}, steps/ lacks {len(holes)}"
        f"{_first(holes)}, {twice} occur twice",
        "a part was deleted, or the run was continued without rewind",
        "restore the part, or rewind the run to before the gap and resume",
    )


def token_steps(facts: Facts) -> Verdict | None:
    """Token rows of every step that was probed, as steps/ and the stated cadence say."""
    have = set(facts.run.steps_probed)
    probed = facts.step_column("n_probed")
    wanted = {int(s) for s in probed.index[probed > 0]}
    every = facts.cadence.get("every", 0)
    if probed.empty and every:
        wanted = set(range(0, (facts.run.last_step or 0) + 1, int(every)))
    if not facts.finished:  # the last part may not be on disk
        wanted = {s for s in wanted if s <= max(have, default=-1)}
    end = facts.full_from
    missing = sorted(s for s in wanted - have if end is None or s < end)
    off = sorted(s for s in have if every and s % every)
    if missing:
        dropped = facts.run.info.get("dropped_windows")
        return Verdict(
            "warning" if dropped else "error",
            f"{len(missing)} probed steps have no token rows{_first(missing)}",
            "dropped windows explain it" if dropped else "a part of tokens/ is gone",
            "leave these steps out" if dropped else "restore the part from a copy",
        )
    if off:
        return Verdict(
            "warning",
            f"{len(off)} steps{_first(off)} have rows though every = {every:.0f}",
            "the rule by which steps were chosen is not the stated one",
        )
    if not have:
        return Verdict(
            "note",
            "no token rows at all",
            "only the tables of steps and samples were checked",
            "record with probe.every of at least 1",
        )
    if end is not None:
        return Verdict(
            "note",
            f"rows of {len(have)} probed steps; none from step {end} on",
            "the log met the limit that was set for it (train.max_log_gb)",
            "to cover a whole run within the limit probe fewer steps (probe.every)",
        )
    return Verdict("ok", f"rows of {len(have)} probed steps")


def samples(facts: Facts) -> Verdict | None:
    """One samples row for each response, and for each fully logged response its token rows."""
    data = facts.samples
    if "uid" not in data or not len(facts.uids):
        return None
    repeated = int(data.duplicated(["uid", "step"]).sum())
    if repeated:
        return Verdict(
            "error",
            f"{repeated} responses have two samples rows with equal uid and step",
            "rewards and groups are counted twice",
            "look for a part copied twice, or a resume without rewind",
        )
    if data["uid"].duplicated().any():
        return Verdict(
            "note",
            f"{len(data):,} responses share {data['uid'].nunique():,} uids",
            "rows cannot be told apart by uid alone: the checks that join rows to samples were "
            "left out, and analysis may group them wrongly",
            "make uid = rollout << 32 | number of the response",
        )
    orphans = len(np.setdiff1d(facts.uids, data["uid"].to_numpy()))
    if orphans:
        return Verdict(
            "error",
            f"{orphans:,} of {len(facts.uids):,} responses with token rows have no samples row",
            "their reward, prompt group and inclusion probability are unknown",
            "restore the missing part of samples/",
        )
    lost = _lost(facts)
    if lost:
        return Verdict(
            "error",
            f"{lost:,} of {len(data):,} responses that were logged for certain have no token rows",
            "parts, ranks or rows are missing",
            "restore the missing part or rank of tokens/",
        )
    return Verdict("ok", f"{len(data):,} responses, tokens and samples agree")


def _lost(facts: Facts) -> int:
    """Responses with inclusion probability 1 and no rows, where every step is probed and whole."""
    data = facts.samples
    if facts.cadence.get("every") != 1 or not facts.finished or not facts.bundled:
        return 0
    if facts.run.info.get("dropped_windows") or "inclusion_prob" not in data:
        return 0
    certain = (data["inclusion_prob"] == 1) & (data["length"] > 0)
    if facts.full_from is not None:
        # Of the last rollout before it some steps may be left out.
        certain &= data["step"] + data["minibatch"] < facts.full_from
    certain = data.loc[certain, "uid"]
    return len(np.setdiff1d(certain.to_numpy(), facts.uids))


def _first(steps: Sequence[int]) -> str:
    return f" (first {steps[0]})" if steps else ""


def _some(items: Sequence[object]) -> str:
    shown = ", ".join(str(i) for i in items[:3])
    return shown + (f" and {len(items) - 3} more" if len(items) > 3 else "")
