"""Which system calls a jailed program may make: a list of what is allowed, all else fails.

The filter is classic BPF built by hand, so it needs no library. It allows what computing, threads,
files and pipes need. There is no socket, no new process (`clone` only for a thread of the same
process), no exec, no signal to another process, no ptrace, mount, namespace, key, io_uring, shared
memory that outlives the process, change of mode or owner. What is not allowed returns EPERM, so a
program sees a PermissionError and its traceback says which call it was.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

# (x86_64, aarch64) of each system call; None where the architecture has none of that name.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66),
    "pread64": (17, 67), "pwrite64": (18, 68), "preadv": (295, 69), "pwritev": (296, 70),
    "creat": (85, None), "close": (3, 57), "close_range": (436, 436), "stat": (4, None),
    "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291),
    "statfs": (137, 43), "fstatfs": (138, 44), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132), "access": (21, None),
    "faccessat": (269, 48), "faccessat2": (439, 439), "pipe": (22, None), "pipe2": (293, 59),
    "select": (23, None), "pselect6": (270, 72), "poll": (7, None), "ppoll": (271, 73),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None),
    "epoll_pwait": (281, 22), "eventfd2": (290, 19), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "nanosleep": (35, 101), "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169),
    "time": (201, None), "times": (100, 153), "getrusage": (98, 165), "getpid": (39, 172),
    "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getgroups": (115, 158), "getpgrp": (111, None),
    "getpgid": (121, 155), "getsid": (124, 156), "getresuid": (118, 148),
    "getresgid": (120, 150), "getpriority": (140, 141), "uname": (63, 160),
    "sysinfo": (99, 179), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50),
    "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None),
    "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "symlink": (88, None), "symlinkat": (266, 36),
    "link": (86, None), "linkat": (265, 37), "ftruncate": (77, 46), "fsync": (74, 82),
    "fdatasync": (75, 83), "getdents64": (217, 61), "readlink": (89, None),
    "readlinkat": (267, 78), "umask": (95, 166), "flock": (73, 32), "dup": (32, 23),
    "dup2": (33, None), "dup3": (292, 24), "futex": (202, 98), "set_robust_list": (273, 99),
    "get_robust_list": (274, 100), "set_tid_address": (218, 96), "rseq": (334, 293),
    "arch_prctl": (158, None), "exit": (60, 93), "exit_group": (231, 94),
    "restart_syscall": (219, 128), "getrandom": (318, 278), "getrlimit": (97, 163),
    "setrlimit": (160, 164), "membarrier": (324, 283), "getcpu": (309, 168),
    "alarm": (37, None), "setitimer": (38, 103), "getitimer": (36, 102), "pause": (34, None),
    "sendfile": (40, 71), "copy_file_range": (326, 285), "fadvise64": (221, 223),
}  # fmt: skip

CLONE_THREAD = 0x10000
CLONE_NEW = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
O_ACCMODE, O_TRUNC = 3, 0o1000
# Opening for reading alone with O_TRUNC would empty a file under a Landlock older than ABI 3.
OPENS = [how | cut for how in (0, 1, 2) for cut in (0, O_TRUNC) if (how, cut) != (0, O_TRUNC)]
# TCGETS, TIOCGWINSZ, FIONREAD, FIONCLEX, FIOCLEX; none that could send a signal or a key press.
IOCTLS = [0x5401, 0x5413, 0x541B, 0x5450, 0x5451]
# F_DUPFD to F_SETLKW, F_DUPFD_CLOEXEC, F_GETPIPE_SZ: not F_SETOWN, which sends signals to others.
FCNTLS = [0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032]
PR_NAMES = [15, 16]
CHECKED: dict[str, tuple[tuple[int | None, int | None], int, int, list[int], int]] = {
    # name: numbers, argument, mask, values of argument & mask that pass, errno of the others
    "open": ((2, None), 1, O_ACCMODE | O_TRUNC, OPENS, errno.EPERM),
    "openat": ((257, 56), 2, O_ACCMODE | O_TRUNC, OPENS, errno.EPERM),
    "ioctl": ((16, 29), 1, 0xFFFFFFFF, IOCTLS, errno.ENOTTY),
    "fcntl": ((72, 25), 1, 0xFFFFFFFF, FCNTLS, errno.EPERM),
    "prctl": ((157, 167), 0, 0xFFFFFFFF, PR_NAMES, errno.EPERM),
    "prlimit64": ((302, 261), 0, 0xFFFFFFFF, [0], errno.EPERM),
    "clone": ((56, 220), 0, CLONE_THREAD | CLONE_NEW, [CLONE_THREAD], errno.EPERM),
    # The C library then falls back on clone, whose flags a filter can see.
    "clone3": ((435, 435), 0, 0, [], errno.ENOSYS),
}
SIGNALS = {"kill": (62, 129), "tgkill": (234, 131)}  # to the own process only

ARCHES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH
X32 = 0x40000000  # bit of the calls of the x32 ABI, which have other numbers

LD, AND, JEQ, JGE, RET = 0x20, 0x54, 0x15, 0x35, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
NR_AT, ARCH_AT, ARGS_AT = 0, 4, 16  # offsets in struct seccomp_data
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, MODE_FILTER = 22, 38, 2


def program(machine: str, pid: int) -> bytes:
    """The filter for a process with this id, as an array of struct sock_filter.

    Raises OSError for an architecture whose system calls are not listed here.
    """
    if machine not in ARCHES:
        raise OSError(errno.ENOSYS, f"no seccomp filter for {machine}, only for {sorted(ARCHES)}")
    column, arch = ARCHES[machine]
    code = [(LD, 0, 0, ARCH_AT), (JEQ, 1, 0, arch), (RET, 0, 0, KILL), (LD, 0, 0, NR_AT)]
    if machine == "x86_64":
        code += [(JGE, 0, 1, X32), (RET, 0, 0, ERRNO | errno.EPERM)]
    for numbers in ALLOWED.values():
        if (number := numbers[column]) is not None:
            code += [(JEQ, 0, 1, number), (RET, 0, 0, ALLOW)]
    own = {name: (n, 0, 0xFFFFFFFF, [pid], errno.EPERM) for name, n in SIGNALS.items()}
    for numbers, argument, mask, passing, error in (CHECKED | own).values():
        if (number := numbers[column]) is not None:
            block = [(LD, 0, 0, ARGS_AT + 8 * argument), (AND, 0, 0, mask)]
            for value in passing:
                block += [(JEQ, 0, 1, value), (RET, 0, 0, ALLOW)]
            block += [(RET, 0, 0, ERRNO | error)]
            code += [(JEQ, 0, len(block), number), *block]
    code += [(RET, 0, 0, ERRNO | errno.EPERM)]
    return b"".join(struct.pack("HBBI", *line) for line in code)


def restrict(libc: ctypes.CDLL) -> None:
    """Put the filter on this process for good; raises OSError where the kernel refuses."""
    filters = program(platform.machine(), os.getpid())
    buffer = ctypes.create_string_buffer(filters, len(filters))
    fprog = struct.pack("HxxxxxxQ", len(filters) // 8, ctypes.addressof(buffer))
    for call in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, MODE_FILTER, fprog, 0, 0)):
        if libc.prctl(*call):
            raise OSError(ctypes.get_errno(), "prctl refused the seccomp filter")
