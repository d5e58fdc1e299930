"""A file tree, a network, System V memory and a host name of the fork server's own.

As root with the right to mount, or as any user where unprivileged user namespaces are allowed.
The tree is a tmpfs with the readable directories bound read-only at their own paths and a second
tmpfs, of bounded size, for private directories: what a program writes never reaches the disk and
is gone with the server.
"""

from __future__ import annotations

import ctypes
import os
import platform

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x40000000
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
DETACH = 2
KEPT = 0b1111 | 1024 | 2048  # flags of a mount that a user namespace may not take off again
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
NOBODY = 65534
DEVICES = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"]
# The new tree is built on top of a directory that every system has and that no library lies in.
STAGE = "/proc"


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(libc: ctypes.CDLL, source: str, target: str, kind: str, flags: int, data: str) -> None:
    args = [text.encode() for text in (source, target, kind)]
    _check(libc.mount(*args, ctypes.c_ulong(flags), data.encode()), f"mount on {target}")


def unshare(libc: ctypes.CDLL) -> str:
    """Leave the namespaces of the parent: "root" or "user"; raises OSError where neither works."""
    flags = NEWNS | NEWNET | NEWIPC | NEWUTS
    uid, gid = os.getuid(), os.getgid()
    if uid == 0 and not libc.unshare(flags):
        return "root"
    _check(libc.unshare(NEWUSER | flags), "unshare")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {uid} 1"),
        ("gid_map", f"{NOBODY} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return "user"


def _bind(libc: ctypes.CDLL, path: str) -> None:
    """The path, read-only, at its own place in the new tree."""
    target = STAGE + path
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(libc, path, target, "", BIND | REC, "")
    kept = os.statvfs(target).f_flag & KEPT
    device = path in DEVICES
    _mount(libc, "", target, "", REMOUNT | BIND | NOSUID | kept | (0 if device else RDONLY), "")


def outermost(paths: list[str]) -> list[str]:
    """The existing paths, resolved, without those that lie below another one."""
    real = sorted({os.path.realpath(p) for p in paths if os.path.exists(p)})
    return [p for p in real if not any(p.startswith(q.rstrip("/") + "/") for q in real)]


def enter(libc: ctypes.CDLL, readable: list[str], size_mb: int) -> str:
    """Make the tree and move into it for good; what `unshare` returned.

    Private directories belong below /tmp, which holds size_mb MiB and 4096 files.
    """
    os.umask(0o022)
    kind = unshare(libc)
    _mount(libc, "", "/", "", REC | PRIVATE, "")
    _mount(libc, "tmpfs", STAGE, "tmpfs", NOSUID, "size=1m,mode=755")
    os.makedirs(f"{STAGE}/tmp")
    tmpfs = f"size={size_mb}m,nr_inodes=4k,mode=755"
    _mount(libc, "tmpfs", f"{STAGE}/tmp", "tmpfs", NOSUID | NODEV, tmpfs)
    for path in [*outermost(readable), *DEVICES]:
        _bind(libc, path)
    for path in readable:  # /lib is a link to usr/lib on most systems
        if os.path.islink(path) and not os.path.lexists(STAGE + path):
            os.makedirs(os.path.dirname(STAGE + path), exist_ok=True)
            os.symlink(os.path.realpath(path), STAGE + path)
    _mount(libc, "", STAGE, "", REMOUNT | BIND | NOSUID | RDONLY, "")
    os.chdir(STAGE)
    _check(libc.syscall(PIVOT_ROOT[platform.machine()], b".", b"."), "pivot_root")
    _check(libc.umount2(b".", DETACH), "umount of the old tree")
    os.chdir("/")
    return kind
