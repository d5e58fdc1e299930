"""Hostile programs: none escapes, none outlives its limit, none is paid, and the reason is kept."""

from __future__ import annotations

import os
import platform
import secrets
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from entropy_lab.train.rewards.code import CodeGrader
from entropy_lab.train.rewards.isolation import JAIL, Isolation, isolation
from entropy_lab.train.rewards.sandbox import Ended, Sandbox
from hostile_programs import ASSERTS, CALLS, SECRET_HEAD, STDIN, fill

LAYERS = isolation()
FORK, MEMFD = {"x86_64": (56, 319), "aarch64": (220, 279)}.get(platform.machine(), (0, 0))

pytestmark = pytest.mark.skipif(not LAYERS.isolated, reason=LAYERS.describe())


def ways() -> dict[str, Isolation]:
    """Every set of layers that counts as isolated and can be had here."""
    found = {"all": LAYERS}
    if LAYERS.landlock:
        found["no namespaces"] = replace(LAYERS, namespaces="")
    if LAYERS.namespaces:
        found["no landlock"] = replace(LAYERS, landlock=0)
    return found


MEMORY = 257  # MiB, as no other test has, by which the processes of this file are known


def sandboxes() -> set[int]:
    """Processes of the sandboxes of this file: servers and whatever they forked."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
            if str(JAIL).encode() in line and f": {MEMORY}".encode() in line:
                found.add(int(path.parent.name))
        except OSError:
            pass
    return found


@pytest.fixture(scope="module", params=ways())
def grader(request: pytest.FixtureRequest) -> Iterator[CodeGrader]:
    before = sandboxes()
    settings: dict[str, Any] = {"timeout": 0.7, "memory_mb": MEMORY, "output_mb": 1.0}
    os.environ["ENTROPY_LAB_SECRET"] = "secret"
    with CodeGrader(workers=1, layers=ways()[request.param], **settings) as made:
        servers = sandboxes() - before
        yield made
        assert sandboxes() - before == servers, "a program outlived its test"
    del os.environ["ENTROPY_LAB_SECRET"]
    assert sandboxes() - before == set(), "a server outlived its grader"


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """What the programs go for: files that anyone may use, listening sockets, and processes."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "secret").write_text("secret")
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o777)
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(folder / "socket"))
        unix.listen()
        (folder / "socket").chmod(0o777)
        yield {
            "folder": folder,
            "secret": folder / "secret",
            "socket": folder / "socket",
            "target": folder / "target",
            "port": tcp.getsockname()[1],
            "pid": os.getpid(),
            "nr_fork": FORK,
            "nr_memfd": MEMFD,
        }
        for server in (tcp, unix):
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.accept()
    assert not (folder / "target").exists()
    assert (folder / "secret").read_text() == "secret"
    assert {p.name for p in folder.iterdir()} == {"secret", "socket"}


def grade(grader: CodeGrader, code: str, tests: Any, values: dict[str, object]) -> Any:
    server = grader._all[0]._server.pid
    code = fill(code, {**values, "server": server})
    [graded] = grader.grade([f"```python\n{code}\n```"], [tests])
    # The same server still answers, with nothing left over from that program.
    [after] = grader.grade(["print(input())"], [{"inputs": ["7"], "outputs": ["7"]}])
    assert after.passed and grader._all[0]._server.pid == server
    return graded


def unpaid(graded: Any, outcomes: set[str]) -> None:
    assert graded.reward() == 0.0, graded
    assert graded.cases[-1].outcome in outcomes, graded.cases
    assert graded.reason and "\n" not in graded.reason
    assert len(graded.reason) < 1000


@pytest.mark.parametrize("name", STDIN)
def test_a_program_does_not_escape(
    grader: CodeGrader, outside: dict[str, object], name: str, monkeypatch: pytest.MonkeyPatch
):
    code, outcomes = STDIN[name]
    ends, wait = [], Sandbox.wait

    def spy(self: Sandbox, run: int, grace: float | None = None) -> Ended:
        ends.append(wait(self, run, grace))
        return ends[-1]

    monkeypatch.setattr(Sandbox, "wait", spy)
    graded = grade(grader, code, {"inputs": [""], "outputs": ["escaped"]}, outside)
    unpaid(graded, outcomes)
    assert b"escaped" not in ends[0].stdout or "output" in name, ends[0].stdout


@pytest.mark.parametrize("name", CALLS)
def test_a_function_is_not_paid_for_more_than_its_value(
    grader: CodeGrader, outside: dict[str, object], name: str
):
    code, outcomes = CALLS[name]
    secret = SECRET_HEAD + secrets.token_hex(18)
    tests = {"fn_name": "f", "inputs": [[1]], "outputs": [secret]}
    unpaid(grade(grader, code, tests, {**outside, "head": SECRET_HEAD}), outcomes)


@pytest.mark.parametrize("name", ASSERTS)
@pytest.mark.parametrize("test", ["assert f(3) == 9", "assert abs(f(0.5) - 0.25) < 1e-9"])
def test_an_assertion_cannot_be_talked_into_passing(
    grader: CodeGrader, outside: dict[str, object], name: str, test: str
):
    code, outcomes = ASSERTS[name]
    if name == "an object equal to all":
        outcomes = {"wrong", "error"}  # it cannot be subtracted from
    unpaid(grade(grader, code, [test], outside), outcomes)


def test_the_trainer_is_alive_and_unchanged():
    """The programs above went for this process: it still has its own limits and environment."""
    import resource

    assert resource.getrlimit(resource.RLIMIT_CPU)[0] == resource.RLIM_INFINITY
    assert os.fork.__module__ == "posix" and Path(os.__file__).stat().st_size > 0
