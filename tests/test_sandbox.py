"""The sandbox itself: what counts as isolated, the refusal, the filter, and a server that dies."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from code_problems import stdin
from entropy_lab.errors import ConfigError
from entropy_lab.train.rewards.code import CodeGrader, code_reward
from entropy_lab.train.rewards.isolation import Isolation, isolation
from entropy_lab.train.rewards.jail import seccomp
from entropy_lab.train.rewards.jail.namespace import outermost
from entropy_lab.train.rewards.sandbox import Sandbox

LAYERS = isolation()
NONE = Isolation(False, 0, "", {"seccomp": "needs Linux, this is darwin"})
needs_sandbox = pytest.mark.skipif(not LAYERS.isolated, reason=LAYERS.describe())


@pytest.mark.parametrize(
    ("layers", "isolated"),
    [
        (Isolation(True, 7, "user"), True),
        (Isolation(True, 1, ""), True),
        (Isolation(True, 0, "root"), True),
        (Isolation(True, 0, ""), False),  # it could read every file
        (Isolation(False, 7, "user"), False),  # it could fork and signal
        (NONE, False),
    ],
)
def test_what_counts_as_isolated(layers: Isolation, isolated: bool):
    assert layers.isolated is isolated


@pytest.mark.skipif(platform.machine() not in seccomp.ARCHES, reason="no filter for it")
def test_what_the_kernel_has_is_found():
    """Else a fault of ours in a layer would only skip the tests below."""
    libc = ctypes.CDLL(None, use_errno=True)
    # Without a filter the call fails with EFAULT where there is seccomp, EINVAL where there is not.
    assert libc.prctl(22, 2, 0, 0, 0) == -1
    assert LAYERS.seccomp is (ctypes.get_errno() != errno.EINVAL), LAYERS.describe()
    assert LAYERS.landlock == max(0, libc.syscall(444, None, 0, 1)), LAYERS.describe()
    assert {*LAYERS.missing} == {
        name for name in ("seccomp", "landlock", "namespaces") if not getattr(LAYERS, name)
    }


def test_without_isolation_it_refuses_with_the_reason_and_the_setting():
    text = (
        "untrusted code is not run here: it takes seccomp and Landlock or namespaces, and this "
        "machine has no layer at all; no seccomp: needs Linux, this is darwin. Run it on a Linux "
        "(x86_64, aarch64) that has them, or accept that a program can reach files and network "
        "of this user with reward.allow_unsandboxed = true"
    )
    with pytest.raises(ConfigError) as caught:
        CodeGrader(layers=NONE)
    assert str(caught.value) == text
    partly = Isolation(True, 0, "", {"landlock": "old kernel", "namespaces": "forbidden"})
    with pytest.raises(ConfigError, match="has seccomp; no landlock: old kernel; no namespaces: f"):
        partly.demand()


def test_the_user_may_insist():
    tests = stdin(("1", "2"))
    program = "print(int(input()) + 1)"
    assert code_reward(program, tests, layers=NONE, allow_unsandboxed=True) == 1.0


@needs_sandbox
def test_output_and_files_are_capped():
    """Without a clock in the way: as much as is allowed passes, one byte more does not."""
    with CodeGrader(workers=1, timeout=20.0, output_mb=0.5) as grader:
        size = 2**19
        programs = [f"sys.stdout.write('x' * {n})" for n in (size, size + 1)]
        programs += [f"sys.stderr.write('x' * {2 * size})"]
        found = grader.grade(programs, [stdin(("", "x" * size))] * 3)
    assert found[0].passed
    for graded in found[1:]:
        assert graded.cases[0].outcome == "killed"
        assert graded.reason.endswith(": it printed or wrote more than 0.5 MiB")


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open('child', 'w').write(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
while not os.path.exists('child') or not open('child').read(): time.sleep(0.01)
print(open('child').read(), os.getcwd())
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds daemons through /proc")
def test_insisting_still_kills_what_a_program_leaves_behind():
    with Sandbox(NONE, memory_mb=512) as sandbox:
        ended = sandbox.wait(sandbox.launch("program", {"code": DAEMON}, 20.0))
        assert ended.exit_code == 0, ended
        pid, folder = ended.stdout.decode().split()
        assert not Path(f"/proc/{pid}").exists()
        assert not Path(folder).exists()
        base = Path(folder).parent
        assert base.exists()
    assert not base.exists()


@needs_sandbox
def test_a_server_that_dies_takes_its_programs_along_and_is_replaced():
    with CodeGrader(workers=1, timeout=20.0) as grader:
        [sandbox] = grader._all
        run = sandbox.launch("program", {"code": "while True: pass"}, 20.0)
        first = sandbox._server.pid
        os.kill(first, signal.SIGKILL)
        assert sandbox.wait(run).why == "server"
        assert sandbox._server.pid != first
        [graded] = grader.grade(["print(1)"], [stdin(("", "1"))])
        assert graded.passed
        os.kill(sandbox._server.pid, signal.SIGKILL)
        sandbox._server.wait()
        [graded] = grader.grade(["print(1)"], [stdin(("", "1"))])
    # One that had not yet been given a program costs no program its reward.
    assert graded.passed


@needs_sandbox
def test_a_program_that_cannot_be_locked_in_is_refused(monkeypatch: pytest.MonkeyPatch):
    broken = replace(LAYERS, namespaces="", landlock=1)
    from entropy_lab.train.rewards import sandbox as module

    real = module.server_settings
    # A limit that the kernel refuses stands for any layer that fails after the server started.
    monkeypatch.setattr(module, "server_settings", lambda *a: real(*a) | {"processes": "many"})
    with CodeGrader(workers=1, layers=broken) as grader:
        [graded] = grader.grade(["print(1)"], [stdin(("", "1"))])
    assert graded.cases[0].outcome == "refused"
    assert "the sandbox could not be put on: TypeError" in graded.reason


@needs_sandbox
def test_a_sandbox_that_does_not_start_says_why():
    broken = replace(LAYERS, namespaces="user", landlock=0)
    from entropy_lab.train.rewards import sandbox as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "server_settings", lambda *a: {})
        with pytest.raises(ConfigError, match="the sandbox does not start .*KeyError"):
            Sandbox(broken)


def interpret(program: bytes, arch: int, number: int, args: tuple[int, ...] = ()) -> int:
    """Plain reading of classic BPF over struct seccomp_data (see Linux, filter.rst)."""
    data = struct.pack("IIQ6Q", number, arch, 0, *(*args, *[0] * 6)[:6])
    lines = list(struct.iter_unpack("HBBI", program))
    at, a = 0, 0
    while True:
        op, yes, no, k = lines[at]
        at += 1
        if op == 0x20:
            a = struct.unpack_from("I", data, k)[0]
        elif op == 0x54:
            a &= k
        elif op in (0x15, 0x35):
            at += yes if (a == k if op == 0x15 else a >= k) else no
        elif op == 0x06:
            return k
        else:
            raise AssertionError(f"unknown operation {op:#x}")


ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS, ENOTTY = (0x50000 | e for e in (errno.EPERM, errno.ENOSYS, errno.ENOTTY))


def test_the_filter_allows_what_is_listed_and_nothing_else():
    for machine, (column, arch) in seccomp.ARCHES.items():
        program = seccomp.program(machine, 77)
        plain = {numbers[column] for numbers in seccomp.ALLOWED.values()} - {None}
        checked = {entry[0][column] for entry in seccomp.CHECKED.values()} - {None}
        checked |= {numbers[column] for numbers in seccomp.SIGNALS.values()}
        assert not plain & checked
        for number in range(600):
            result = interpret(program, arch, number)
            if number in plain:
                assert result == ALLOW
            elif number not in checked:
                assert result == EPERM
        assert interpret(program, 0x40000003, 1) == KILL  # 32-bit calls have other numbers
    assert interpret(seccomp.program("x86_64", 77), 0xC000003E, 0x40000000 | 39) == EPERM


@pytest.mark.parametrize(
    ("number", "args", "result"),
    [
        (62, (77, 9), ALLOW),  # kill, of itself
        (62, (78, 9), EPERM),
        (62, (0, 9), EPERM),
        (62, (2**32 - 1, 9), EPERM),
        (234, (77, 80, 9), ALLOW),
        (234, (1, 1, 9), EPERM),
        (56, (0x3D0F00,), ALLOW),  # clone of a thread, as the C library asks for it
        (56, (17,), EPERM),
        (56, (0x10000 | 0x10000000,), EPERM),
        (435, (), ENOSYS),
        (257, (0, 0, 0o2000000), ALLOW),
        (257, (0, 0, 0o1000), EPERM),  # O_RDONLY | O_TRUNC
        (257, (0, 0, 0o1001), ALLOW),
        (16, (0, 0x5401), ALLOW),
        (16, (0, 0x5412), ENOTTY),  # TIOCSTI
        (72, (0, 8), EPERM),  # F_SETOWN
        (72, (0, 2), ALLOW),
        (157, (15,), ALLOW),
        (157, (1,), EPERM),  # PR_SET_PDEATHSIG
        (302, (0, 9), ALLOW),
        (302, (1, 9), EPERM),
    ],
)
def test_the_filter_reads_arguments(number: int, args: tuple[int, ...], result: int):
    assert interpret(seccomp.program("x86_64", 77), 0xC000003E, number, args) == result


def test_an_architecture_without_a_filter_is_named():
    with pytest.raises(OSError, match="no seccomp filter for riscv64, only for"):
        seccomp.program("riscv64", 1)


def test_only_the_outermost_directories_are_bound(tmp_path: Path):
    for name in ("a/b", "ab"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    paths = [f"{tmp_path}/{name}" for name in ("a/b", "a", "ab", "link", "none")]
    assert outermost(paths) == [f"{tmp_path}/a", f"{tmp_path}/ab"]


AS_NOBODY = """
import json
from entropy_lab.train.rewards.code import CodeGrader
from entropy_lab.train.rewards.isolation import isolation
with CodeGrader(workers=1, timeout=5.0) as grader:
    programs = ["print(int(input()) + 1)", "import os; os.fork()", "open('/etc/passwd')"]
    tests = [{"inputs": ["1"], "outputs": ["2"]}] * 3
    reasons = [graded.reason for graded in grader.grade(programs, tests)]
print(json.dumps([isolation().isolated, isolation().namespaces, reasons]))
"""


def nobodys_python() -> str | None:
    """An interpreter of at least 3.11 that a user without rights can start."""
    for path in filter(None, (sys.executable, shutil.which("python3", path="/usr/bin"))):
        check = [path, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if not subprocess.run(check, user=65534, group=65534, extra_groups=[]).returncode:
                return path
        except OSError:
            pass
    return None


@needs_sandbox
@pytest.mark.skipif(os.getuid() != 0, reason="the other tests already run without root")
def test_it_works_for_a_user_without_rights():
    python = nobodys_python()
    if python is None:
        pytest.skip("no Python that another user can start")
    ran = subprocess.run(
        [python, "-B", "-c", AS_NOBODY],
        user=65534, group=65534, extra_groups=[], capture_output=True, text=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    if "No module named" in ran.stderr or "Permission denied: '/" in ran.stderr:
        pytest.skip("the checkout or its packages are closed to other users")
    assert ran.returncode == 0, ran.stderr
    isolated, namespaces, reasons = json.loads(ran.stdout)
    assert isolated and namespaces in ("user", "")
    assert reasons[0] == "" and "PermissionError: [Errno 1]" in reasons[1]
    assert "passwd" in reasons[2]
