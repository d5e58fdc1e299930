"""What isolates an untrusted program on this machine, and what is missing where it cannot be.

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
import subprocess
import sys
import sysconfig
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
    config = server_settings(Isolation(False, 0, ""), 256, 1.0)
    command = server_command("probe", config)
    ran = subprocess.run(command, env=server_environment(), capture_output=True)
    if ran.returncode:
        why = ran.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it did not start"]
        return Isolation(False, 0, "", dict.fromkeys(("seccomp", "landlock", "namespaces"), why[0]))
    found = json.loads(ran.stdout)
    landlock = int(found["landlock"] or 0)
    return Isolation(bool(found["seccomp"]), landlock, found["namespaces"], found["missing"])


def server_settings(layers: Isolation, memory_mb: int, file_mb: float) -> dict[str, Any]:
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


def server_command(first: str, config: dict[str, Any]) -> list[str]:
    flags = ["-P", "-s", "-S", "-B", "-c", START, str(JAIL / "__init__.py")]
    return [sys.executable, *flags, first, json.dumps(config)]


def server_environment() -> dict[str, str]:
    """Nothing of ours; equal hashes, so that a program's result does not depend on the server."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    python = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    system = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "TZ": "UTC"}
    return system | python | threads
