"""Running untrusted Python in jailed processes: what isolates them here, and the fork server.

A program runs in a process of its own that a small fork server (`jail.zygote`) made. It is called
isolated where both of these hold, whatever else is missing:

* a seccomp filter: no network of any kind, no second process, no exec, no signal to others;
* a file tree that it cannot leave: Landlock, or user (as root: plain) namespaces, both if there.

Around them stand limits on address space, CPU seconds, file and output size, open files and
threads, no privileges and no environment, a private directory (in memory, of bounded size; without
namespaces a program can write no file at all), and a wall clock whose end kills the process.

What remains: a bug in the kernel behind the calls that are allowed; timing (programs share caches
and cores with the trainer); file metadata where there are no namespaces; threads up to the limit on
address space for a user whose processes are not counted apart. Linux on x86_64 and aarch64 only.
"""

from __future__ import annotations

import functools
import json
import os
import select
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entropy_lab.errors import ConfigError

JAIL = Path(__file__).parent / "jail"
# The package without its parents, which would import torch.
START = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("jail", sys.argv.pop(1))
sys.modules["jail"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from jail import zygote
zygote.main()
"""
SYSTEM = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/localtime"]
SYSTEM += ["/etc/ld.so.cache", "/dev/zero", "/dev/random", "/dev/urandom"]
THREADS = 512
TMP_MB = 32
SILENCE = 60.0  # seconds beyond a program's wall clock until its server counts as dead
SETTING = "reward.allow_unsandboxed = true"


@dataclass(frozen=True)
class Isolation:
    """Which layers hold on this machine, each of them tried out, and why the others do not.

    landlock: its version, 0 for none; namespaces: "user", "root" or "" for none.
    """

    seccomp: bool
    landlock: int
    namespaces: str
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def isolated(self) -> bool:
        """No network, no other process and no file of ours: what untrusted code may run in."""
        return self.seccomp and bool(self.landlock or self.namespaces)

    def describe(self) -> str:
        """One line: what is there, and what is missing and why."""
        landlock = f"Landlock {self.landlock}" if self.landlock else ""
        names = f"{self.namespaces} namespaces" if self.namespaces else ""
        there = [part for part in ("seccomp" if self.seccomp else "", landlock, names) if part]
        gone = [f"no {name}: {why}" for name, why in self.missing.items()]
        return "; ".join([" + ".join(there) or "no layer at all", *gone])

    def demand(self) -> None:
        """Raises ConfigError, with the setting that accepts the risk, unless isolated."""
        if not self.isolated:
            raise ConfigError(
                f"untrusted code is not run here: it takes seccomp and Landlock or namespaces, "
                f"and this machine has {self.describe()}. Run it on a Linux (x86_64, aarch64) that "
                f"has them, or accept that a program can reach files and network of this user "
                f"with {SETTING}"
            )


@functools.cache
def isolation() -> Isolation:
    """What this machine allows an unprivileged program of this user; tried out once a process."""
    if sys.platform != "linux":
        why = f"needs Linux, this is {sys.platform}"
        return Isolation(False, 0, "", dict.fromkeys(("seccomp", "landlock", "namespaces"), why))
    config = _config(Isolation(False, 0, ""), 256, 1.0)
    ran = subprocess.run(_command("probe", config), env=_environment(), capture_output=True)
    if ran.returncode:
        why = ran.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it did not start"]
        return Isolation(False, 0, "", dict.fromkeys(("seccomp", "landlock", "namespaces"), why[0]))
    found = json.loads(ran.stdout)
    landlock = int(found["landlock"] or 0)
    return Isolation(bool(found["seccomp"]), landlock, found["namespaces"], found["missing"])


def _config(layers: Isolation, memory_mb: int, file_mb: float) -> dict[str, Any]:
    """The settings of a fork server, as jail.zygote reads them."""
    paths = sysconfig.get_paths()
    library = [paths["stdlib"], paths["platstdlib"], *(p for p in sys.path if p.endswith(".zip"))]
    library += [os.path.join(paths["stdlib"], "lib-dynload"), paths["purelib"], paths["platlib"]]
    path = list(dict.fromkeys(os.path.realpath(p) for p in library if os.path.exists(p)))
    readable = [*path, os.path.realpath(os.path.join(sys.base_prefix, "lib")), *SYSTEM]
    counted = bool(layers.namespaces) or os.getuid() == 0
    return {
        "seccomp": layers.seccomp,
        "landlock": layers.landlock,
        "namespaces": layers.namespaces,
        "path": path,
        "readable": readable,
        "memory_mb": memory_mb,
        "file_mb": file_mb,
        "tmp_mb": TMP_MB,
        # Elsewhere the limit would count the user's other processes; a seccomp filter allows one.
        "processes": THREADS if counted or not layers.seccomp else -1,
    }


def _command(first: str, config: dict[str, Any]) -> list[str]:
    flags = ["-P", "-s", "-S", "-B", "-c", START, str(JAIL / "__init__.py")]
    return [sys.executable, *flags, first, json.dumps(config)]


def _environment() -> dict[str, str]:
    """Nothing of ours; equal hashes, so that a program's result does not depend on the server."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    python = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "TZ": "UTC"} | python | threads


def memory_file(data: bytes = b"") -> int:
    """File descriptor of an unnamed file with these contents, at its beginning."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("entropy-lab")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


@dataclass(frozen=True)
class Ended:
    """How a program ended: wait status, "" or "wall" or "asked" where it was killed, and its use."""

    status: int
    why: str
    cpu: float
    rss_mb: float
    stdout: bytes
    stderr: str

    @property
    def signal(self) -> int:
        return os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0

    @property
    def exit_code(self) -> int:
        return os.WEXITSTATUS(self.status) if os.WIFEXITED(self.status) else -1


class Sandbox:
    """One fork server and the programs that it runs; for one thread of ours.

    memory_mb: address space of a program; file_mb: its output and any file that it writes.
    """

    def __init__(self, layers: Isolation, memory_mb: int = 1024, file_mb: float = 4.0) -> None:
        self.layers, self.memory_mb, self.file_mb = layers, memory_mb, file_mb
        self._next, self._buffer = 0, b""
        self._ended: dict[int, dict[str, Any]] = {}
        self._files: dict[int, tuple[int, int, float]] = {}  # stdout, stderr, wall
        self._start()

    def _start(self) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            command = _command(
                str(theirs.fileno()), _config(self.layers, self.memory_mb, self.file_mb)
            )
            self._server = subprocess.Popen(
                command,
                env=_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
            )
        if not self._listen(30.0):
            why = self._stop().strip().splitlines()[-1:]
            raise ConfigError(f"the sandbox does not start ({self.layers.describe()}): {why}")

    def launch(
        self,
        kind: str,
        payload: dict[str, Any],
        wall: float,
        stdin: bytes = b"",
        extra: tuple[int, ...] = (),
    ) -> int:
        """Start a program ("program", "serve" or "check", see jail.child); its number.

        wall: seconds until it is killed; extra: descriptors that it gets after the standard ones.
        """
        self._next += 1
        code = memory_file(json.dumps(payload).encode())
        files = [memory_file(stdin), memory_file(), memory_file(), code]
        order = json.dumps({"run": self._next, "kind": kind, "wall": wall}).encode() + b"\n"
        try:
            socket.send_fds(self._control, [order], [*files, *extra])
        except OSError:
            self._ended[self._next] = {}
        os.close(files[0])
        os.close(code)
        self._files[self._next] = (files[1], files[2], wall)
        return self._next

    def kill(self, run: int) -> None:
        if run not in self._ended:
            try:
                self._control.sendall(json.dumps({"kill": run}).encode() + b"\n")
            except OSError:
                self._ended[run] = {}

    def runs(self, run: int) -> bool:
        """Whether nobody has waited for it yet."""
        return run in self._files

    def wait(self, run: int, grace: float | None = None) -> Ended:
        """Its end, which the wall clock of the server brings about at the latest.

        grace: seconds until it is killed earlier.
        """
        if grace is not None:
            self._until(run, grace)
            self.kill(run)
        while run not in self._ended:
            if not self._listen(self._files[run][2] + SILENCE):
                self._ended[run] = {}
        end = self._ended.pop(run) or {"status": 9, "why": "server", "cpu": 0.0, "rss_mb": 0.0}
        out, err = (self._read(fd) for fd in self._files.pop(run)[:2])
        if end["why"] == "server":
            self._stop()
            self._start()
        stderr = err[-4000:].decode(errors="replace")
        return Ended(end["status"], end["why"], end["cpu"], end["rss_mb"], out, stderr)

    def _until(self, run: int, seconds: float) -> None:
        """Listen until it has ended, at most that long."""
        until = time.monotonic() + seconds
        while run not in self._ended and (left := until - time.monotonic()) > 0:
            self._listen(left)

    def _read(self, fd: int) -> bytes:
        data = os.pread(fd, int(self.file_mb * 2**20), 0)
        os.close(fd)
        return data

    def _listen(self, seconds: float) -> bool:
        """Take in what the server says; False where it has gone or says nothing for that long."""
        if not select.select([self._control], [], [], seconds)[0]:
            return False
        try:
            data = self._control.recv(1 << 16)
        except OSError:
            return False
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in map(json.loads, lines):
            if "ended" in line:
                self._ended[line["ended"]] = line
        return bool(data)

    def _stop(self) -> str:
        """End the server and everything that it runs; what it wrote to stderr."""
        self._control.close()
        try:
            _, errors = self._server.communicate(timeout=10.0)
        except subprocess.TimeoutExpired:
            self._server.kill()
            _, errors = self._server.communicate()
        return errors.decode(errors="replace")

    def close(self) -> None:
        self._stop()
        for out, err, _ in self._files.values():
            os.close(out)
            os.close(err)
        self._files.clear()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


