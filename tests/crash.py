"""Training runs killed with SIGKILL inside of a chosen phase, each in a process of its own.

The processes are forked from a server that has imported everything, so that one costs a second. The
moment is set by wrapping what the trainer calls; the product knows nothing of it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import entropy_lab
from entropy_lab.analysis.doctor import doctor
from entropy_lab.record import load
from entropy_lab.train.checkpoint import complete_checkpoints
from entropy_lab.train.tensor_files import file_digest
from tiny import TINY, assert_same_run

# A method with a memory, evaluations, replay points, a falling rate and a best checkpoint.
SETTINGS = [
    *TINY,
    "probe.profile=core",
    "probe.deep_every=0",
    "method.name=pos_adv_reweight",
    "optimizer.schedule=cosine",
    "train.checkpoint_every=1",
    "train.keep_checkpoints=2",
    "train.keep_best=avg_at_k",
    "train.replay_every=2",
    "task.held_out_share=0.3",
    "eval.every=2",
    "eval.problems=6",
    "eval.samples=4",
]
# Where each phase is entered. The last three are single calls of the system, by the loop and by the
# writer's thread: the process dies just before one, just after it, or with half of the bytes out.
PHASES = {
    "rollout": "entropy_lab.train.parts.Parts.sample",
    "update": "entropy_lab.train.loop.update",
    "probe": "entropy_lab.probe.scorer.Scorer.fresh",
    "commit": "entropy_lab.probe.probe.Probe.commit",
    "evaluation": "entropy_lab.train.evaluate.evaluate",
    "replay": "entropy_lab.train.loop.save_replay_point",
    "checkpoint": "entropy_lab.train.loop.save_checkpoint",
    "fsync": "os.fsync",
    "rename": "os.replace",
    "write": "os.write",
}
_SYSTEM = ("fsync", "rename", "write")
# transformers imports most of itself when it is first used.
_PRELOAD = [
    "crash",
    "entropy_lab.train.loop",
    "tokenizers",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen2.modeling_qwen2",
]


class Moment(NamedTuple):
    """`part` of the way through the call number `call` of a phase, which took `seconds` before."""

    phase: str
    call: int
    part: float
    seconds: float


def moments(durations: dict[str, list[float]], count: int, seed: int) -> list[Moment]:
    """Random moments; every phase comes before any comes again."""
    rng = random.Random(seed)
    found: list[Moment] = []
    while len(found) < count:
        for phase in rng.sample(list(PHASES), len(PHASES)):
            call = rng.randrange(len(durations[phase]))
            found.append(Moment(phase, call, rng.random(), durations[phase][call]))
    return found[:count]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # the signal is on its way


def _watched(
    phase: str, inner: Callable[..., Any], moment: Moment | None, durations: list[float]
) -> Callable[..., Any]:
    """`inner`, timed; at its moment it ends the process."""

    def call(*args: Any, **kwargs: Any) -> Any:
        number = len(durations)
        durations.append(0.0)
        now = moment is not None and moment.phase == phase and moment.call == number
        if now and phase == "write" and moment.part < 0.5:
            inner(args[0], bytes(args[1])[: len(args[1]) // 2])
        if now and phase in _SYSTEM and moment.part < 0.5:
            die()
        if now and phase not in _SYSTEM:
            threading.Timer(moment.part * moment.seconds, die).start()
        started = time.perf_counter()
        result = inner(*args, **kwargs)
        if now and phase in _SYSTEM:
            die()
        durations[number] = time.perf_counter() - started
        return result

    return call


def _train(out: Path, home: str, package: str, resume: bool, moment: Moment | None) -> None:
    """In the child: train or go on, and note how long each call of each phase took."""
    assert entropy_lab.__file__ == package
    os.environ["XDG_CACHE_HOME"] = home
    log = os.open(f"{out}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    from entropy_lab.train.launch import run_training

    durations: dict[str, list[float]] = {phase: [] for phase in PHASES}
    with ExitStack() as stack:
        for phase, name in PHASES.items():
            module, _, attribute = name.rpartition(".")
            owner = _found(module)
            watched = _watched(phase, getattr(owner, attribute), moment, durations[phase])
            stack.enter_context(patch.object(owner, attribute, watched))
        run_training(None, [] if resume else SETTINGS, out, resume=resume)
    Path(f"{out}.json").write_text(json.dumps(durations))


def _found(name: str) -> Any:
    import pkgutil

    return pkgutil.resolve_name(name)


def train(out: Path, *, resume: bool = False, moment: Moment | None = None) -> int:
    """Run it in a process of its own; returns the exit code, -9 for a killed one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    package, home = str(entropy_lab.__file__), os.environ["XDG_CACHE_HOME"]
    child = context.Process(target=_train, args=(out, home, package, resume, moment))
    child.start()
    child.join(120)
    assert child.exitcode is not None, "the run hangs"
    return child.exitcode


def durations_of(out: Path) -> dict[str, list[float]]:
    """How long the calls of an uninterrupted run took."""
    return json.loads(Path(f"{out}.json").read_text())


def check_readable(out: Path, whole: Path) -> None:
    """What a killed run left is whole: its rows are those of `whole`, its checkpoints complete."""
    if not (out / "run.json").exists():  # killed before it was one
        assert not (out / "metrics.jsonl").exists()
        return
    run, full = load(out), load(whole)
    assert not run.damaged
    if run.last_step is not None:
        lines = run.metrics()
        assert doctor(out).healthy, doctor(out).lines()
        for kind in ("tokens", "steps", "samples"):
            through = lines["tokens_through"].iloc[-1]
            if through != through:
                continue
            found, expected = getattr(run, kind)(), getattr(full, kind)()
            sure = found[found["step"] <= through].reset_index(drop=True)
            assert sure.equals(expected[expected["step"] <= through].reset_index(drop=True)), kind
    for kind in ("checkpoints", "replay"):
        named = {p for p in (out / kind).glob("step-*") if not p.name.endswith(".tmp")}
        complete = complete_checkpoints(out, kind)  # type: ignore[arg-type]
        assert named == set(complete)
        for path in complete:
            sums = json.loads((path / "state.json").read_text())["files"]
            assert all(file_digest(path / name) == s["sha256"] for name, s in sums.items())


def check_same(out: Path, whole: Path) -> None:
    """Equal rows, metrics and evaluations, and the same bytes in checkpoints and replay points."""
    assert_same_run(whole, out)
    assert (out / "evals.parquet").read_bytes() == (whole / "evals.parquet").read_bytes()
    for kind in ("checkpoints", "replay"):
        left, right = _files(out / kind), _files(whole / kind)
        assert left.keys() == right.keys()
        assert [name for name in left if left[name] != right[name]] == []
    assert not list(out.rglob("*.tmp"))


def _files(folder: Path) -> dict[str, bytes]:
    paths = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def kill_and_resume(out: Path, whole: Path, moment: Moment) -> str:
    """Kill a run at a moment, look at what is left, go on, compare; returns a line about it."""
    code = train(out, moment=moment)
    assert code == -signal.SIGKILL or code == 0, Path(f"{out}.log").read_text()
    check_readable(out, whole)
    left = "before it was a run"
    if (out / "run.json").exists():
        run = load(out)
        kept = [path.name for path in complete_checkpoints(out)]
        left = f"logged to step {run.last_step}, checkpoint {kept[-1] if kept else 'none'}"
    if code:
        resumed = train(out, resume=(out / "run.json").exists())
        finished = "has finished its" in Path(f"{out}.log").read_text()
        assert resumed == 0 or finished, Path(f"{out}.log").read_text()
    check_same(out, whole)
    how = "killed" if code else "it ended first"
    place = f"{moment.phase} {moment.call}, {moment.part:.0%}"
    return f"{place:<24} {how}, {left}; resumed: equal"
