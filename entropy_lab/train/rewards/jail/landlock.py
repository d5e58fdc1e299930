"""Which files a jailed program may open: Landlock, in the kernel since 5.13, for any user.

Reading: the directories of the interpreter and of the system's libraries. Writing: the private
directory, if there is one. Everything else under / fails with EACCES, /proc, /sys and the home
directory included. Landlock does not cover stat and chdir (metadata stays visible where there is
no namespace) nor chmod, chown and truncate (the seccomp filter has none of them).
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
VERSION, PATH_BENEATH = 1, 1
READ_FILE, READ_DIR, WRITE_FILE, TRUNCATE = 1 << 2, 1 << 3, 1 << 1, 1 << 14
DEVICES = 1 << 6 | 1 << 11 | 1 << 9  # making character and block devices and sockets
FILE_RIGHTS = 1 | WRITE_FILE | READ_FILE | TRUNCATE | 1 << 15


def abi(libc: ctypes.CDLL) -> int:
    """The version of Landlock in this kernel; 0 where there is none."""
    return max(0, libc.syscall(CREATE_RULESET, None, 0, VERSION))


def handled(version: int) -> tuple[int, bytes]:
    """The file rights that this version knows, and its struct landlock_ruleset_attr."""
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    fields = [files]
    if version >= 4:
        fields.append(0b11)  # bind and connect of TCP
    if version >= 6:
        fields.append(0b11)  # abstract unix sockets and signals
    return files, struct.pack(f"{len(fields)}Q", *fields)


def restrict(libc: ctypes.CDLL, readable: list[str], writable: list[str]) -> None:
    """Leave this process these paths and no others, for good; no_new_privs must be set.

    Paths that do not exist are passed over. Raises OSError where the kernel refuses.
    """
    rights, attr = handled(abi(libc))
    ruleset = libc.syscall(CREATE_RULESET, attr, len(attr), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    wanted = [(path, READ_FILE | READ_DIR) for path in readable]
    wanted += [("/dev/null", READ_FILE | WRITE_FILE | TRUNCATE)]
    wanted += [(path, rights & ~DEVICES & ~1) for path in writable]
    for path, allowed in wanted:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            allowed &= FILE_RIGHTS
        rule = struct.pack("=Qi", allowed & rights, fd)
        failed = libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, rule, 0)
        os.close(fd)
        if failed:
            raise OSError(ctypes.get_errno(), f"landlock_add_rule for {path}")
    if libc.syscall(RESTRICT_SELF, ruleset, 0):
        raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    os.close(ruleset)
