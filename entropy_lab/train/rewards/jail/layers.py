"""The layers of the sandbox on one process, and which of them this machine lets us use."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any

from . import landlock, namespace, seccomp

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP = 1, 38, 24
CAPABILITY_VERSION = 0x20080522
OPEN_FILES = 64
STACK_MB = 64


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def limit(memory_mb: int, file_mb: float, cpu_s: int, processes: int) -> None:
    """Resource limits of this process, hard ones.

    Memory is address space, which one process cannot pass because it has no second one. The CPU
    limit stands behind the wall clock. The stack keeps its hard limit, because programs raise it
    for deep recursion and address space bounds it anyway.
    """
    size = int(file_mb * 2**20)
    for name, value in (
        ("RLIMIT_AS", memory_mb * 2**20),
        ("RLIMIT_FSIZE", size),
        ("RLIMIT_CPU", cpu_s),
        ("RLIMIT_NPROC", processes),
        ("RLIMIT_NOFILE", OPEN_FILES),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_MSGQUEUE", 0),
        ("RLIMIT_MEMLOCK", 0),
    ):
        if (which := getattr(resource, name, None)) is not None and value >= 0:
            hard = resource.getrlimit(which)[1]
            soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(which, (soft, soft))
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    stack = STACK_MB * 2**20
    stack = stack if hard == resource.RLIM_INFINITY else min(stack, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, hard))


def nobody_reads(path: str) -> bool:
    """Whether a user without any rights could read that directory (asked as root)."""
    uid, gid, groups = os.geteuid(), os.getegid(), os.getgroups()
    os.setgroups([])
    os.setegid(namespace.NOBODY)
    os.seteuid(namespace.NOBODY)
    try:
        return bool(os.listdir(path))
    except OSError:
        return False
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)


def lower(nobody: bool) -> None:
    """Give up every privilege; `nobody`: as root, the user id as well."""
    for capability in range(64):
        if libc().prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) and capability > 40:
            break
    if nobody:
        os.setgroups([])
        os.setresgid(*[namespace.NOBODY] * 3)
        os.setresuid(*[namespace.NOBODY] * 3)
    header = struct.pack("Ii", CAPABILITY_VERSION, 0)
    failed = libc().capset(header, struct.pack("6I", *[0] * 6))
    failed |= libc().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # After the change of user, which clears it: dies with the server.
    failed |= libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if failed and sys.platform == "linux":
        raise OSError("the kernel did not let it give up its privileges")


def lock(config: dict[str, Any], home: str | None) -> None:
    """Landlock and seccomp on this process, as far as config asks for them.

    home: the only directory that stays writable. Raises OSError where a layer fails.
    """
    lib = libc()
    if config["landlock"]:
        landlock.restrict(lib, config["readable"], [home] if home else [])
    if config["seccomp"]:
        seccomp.restrict(lib)


def _fails(call: Callable[[], Any], *errors: int) -> None:
    """Raises OSError unless the call fails with one of these errors."""
    try:
        call()
    except OSError as error:
        if error.errno in errors:
            return
    raise OSError("the layer was accepted but does not hold")


def _try_seccomp(config: dict[str, Any]) -> str:
    import _socket

    seccomp.restrict(libc())
    _fails(os.fork, errno.EPERM)
    _fails(lambda: _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM), errno.EPERM)
    return "1"


def _try_landlock(config: dict[str, Any]) -> str:
    version = landlock.abi(libc())
    if not version:
        raise OSError("this kernel has no Landlock (Linux 5.13 and lsm=...,landlock have it)")
    libc().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    landlock.restrict(libc(), config["readable"], [])
    _fails(lambda: os.listdir("/"), errno.EACCES)
    os.listdir(config["readable"][0])
    return str(version)


def _try_namespaces(config: dict[str, Any]) -> str:
    kind = namespace.enter(libc(), config["readable"], 1)
    _fails(lambda: os.stat("/proc/self"), errno.ENOENT)
    os.listdir(config["readable"][0])
    return kind


def _attempt(call: Callable[[dict[str, Any]], str], config: dict[str, Any]) -> tuple[str, str]:
    """(result, "") of a call in a child that ends with it, or ("", why it failed)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            answer = f"+{call(config)}"
        except BaseException as error:
            answer = f"-{error}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        answer = file.read()
    os.waitpid(pid, 0)
    return (answer[1:], "") if answer.startswith("+") else ("", answer[1:] or "it was killed")


def probe(config: dict[str, Any]) -> dict[str, Any]:
    """What works here, each tried out in a process of its own, and why the rest does not."""
    tries = {"seccomp": _try_seccomp, "landlock": _try_landlock, "namespaces": _try_namespaces}
    results = {name: _attempt(call, config) for name, call in tries.items()}
    return {
        **{name: found for name, (found, _) in results.items()},
        "missing": {name: why for name, (found, why) in results.items() if not found},
    }
