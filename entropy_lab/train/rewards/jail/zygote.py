"""The fork server: one small process that has the standard library loaded and forks children.

It is told what to run over a socket, as lines of JSON with the child's files beside them, and
answers one line a child that ended. It reads neither code nor tests, so no child inherits them
from it. It kills children at their wall-clock limit or when told to, removes what they left, and
ends itself and all of them when the socket closes.

    {"run": 7, "kind": "serve", "wall": 3.0} + files   start; no answer
    {"kill": 7}                                        kill; answered by the end of the child
    {"ended": 7, "status": ..., "why": "", "cpu": seconds, "rss_mb": ...}
"""

from __future__ import annotations

import gc
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from typing import Any

from . import child, layers, namespace

PR_SET_CHILD_SUBREAPER = 36
MODULES = (
    "abc array ast cmath contextlib dataclasses decimal enum fractions hashlib numbers queue "
    "struct textwrap timeit types uuid calendar zlib base64"
).split()


class Zygote:
    def __init__(self, control: socket.socket, config: dict[str, Any]) -> None:
        self.control, self.config = control, config
        self.running: dict[int, dict[str, Any]] = {}  # by process id
        self.names = child.prelude()
        for name in MODULES:
            __import__(name)
        self.base = self._base()
        # One more process than the server itself: only threads of a child count against it.
        layers.libc().prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.wake, writer = os.pipe()
        for fd in (self.wake, writer):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(writer)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        gc.collect()
        gc.freeze()

    def _base(self) -> str | None:
        """Where private directories are made; None: programs get none and can write no file."""
        if self.config["namespaces"]:
            namespace.enter(layers.libc(), self.config["readable"], self.config["tmp_mb"])
            return "/tmp"
        if self.config["seccomp"] and self.config["landlock"]:
            return None
        return tempfile.mkdtemp(prefix="entropy-lab-")

    def start(self, order: dict[str, Any], files: list[int]) -> None:
        home = f"{self.base}/run{order['run']}" if self.base else None
        if home:
            os.mkdir(home, 0o700)
            if self.config["nobody"]:
                os.chown(home, namespace.NOBODY, namespace.NOBODY)
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            config = {**self.config, "cpu_s": int(order["wall"]) + 2}
            child.main(order["kind"], files, config, home, self.names)
        for fd in files:
            os.close(fd)
        until = time.monotonic() + order["wall"]
        self.running[pid] = {"id": order["run"], "until": until, "home": home, "why": ""}

    def kill(self, pid: int, why: str) -> None:
        self.running[pid]["why"] = self.running[pid]["why"] or why
        for send in (os.killpg, os.kill):  # it may not have its own group yet
            try:
                send(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def reap(self) -> None:
        while self.running:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid not in self.running:
                continue  # a process that an unsandboxed program left behind
            run = self.running.pop(pid)
            if not self.config["seccomp"]:
                self.sweep(pid)
            if run["home"]:
                shutil.rmtree(run["home"], ignore_errors=True)
            end = {"ended": run["id"], "status": status, "why": run["why"]}
            end |= {"cpu": used.ru_utime + used.ru_stime, "rss_mb": used.ru_maxrss / 1024}
            self.control.sendall(json.dumps(end).encode() + b"\n")

    def sweep(self, group: int) -> None:
        """Without a seccomp filter a program can fork: kill its group and what came to us."""
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        for _ in range(100):
            left = [pid for pid in _children() if pid not in self.running]
            for pid in left:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            if not left:
                return

    def orders(self) -> bool:
        """Obey what has come over the socket; False once it is closed."""
        data, files, _, _ = socket.recv_fds(self.control, 1 << 16, 16)
        if not data:
            return False
        for line in data.splitlines():
            order = json.loads(line)
            if "run" in order:
                self.start(order, files)
            for pid in [p for p, run in self.running.items() if run["id"] == order.get("kill")]:
                self.kill(pid, "asked")
        return True

    def loop(self) -> None:
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(self.wake, select.POLLIN)
        while True:
            now = time.monotonic()
            for pid, run in self.running.items():
                if run["until"] <= now:
                    self.kill(pid, "wall")
                    run["until"] = now + 1.0  # once more, if it lives on
            nearest = min((run["until"] for run in self.running.values()), default=now + 3600)
            ready = {fd for fd, _ in poll.poll(max(0.0, nearest - now) * 1000 + 1)}
            if self.wake in ready:
                os.read(self.wake, 4096)
            self.reap()
            if self.control.fileno() in ready and not self.orders():
                return

    def close(self) -> None:
        for pid in list(self.running):
            self.kill(pid, "closed")
            os.waitpid(pid, 0)
            if not self.config["seccomp"]:
                self.sweep(pid)
        if self.base and not self.config["namespaces"]:
            shutil.rmtree(self.base, ignore_errors=True)


def _children() -> list[int]:
    """Processes whose parent this one is, from /proc; none where there is no /proc."""
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            if parent == os.getpid():
                found.append(int(name))
    return found


def main() -> None:
    """argv: a file descriptor of the socket, or `probe`; then the settings as JSON."""
    config = json.loads(sys.argv[2])
    sys.path[:] = config["path"]
    config["nobody"] = os.getuid() == 0 and (
        config["namespaces"] == "root" or layers.nobody_reads(config["readable"][0])
    )
    if sys.argv[1] == "probe":
        print(json.dumps(layers.probe(config)))
        return
    try:
        # First to go when memory runs out, in place of the trainer.
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass
    os.setsid()
    zygote = Zygote(socket.socket(fileno=int(sys.argv[1])), config)
    zygote.control.sendall(b'{"ready": true}\n')
    try:
        zygote.loop()
    finally:
        zygote.close()
