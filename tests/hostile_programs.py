"""Programs that try to get out of the sandbox, to outlive it or to be paid without solving.

Never run one outside of it. Each prints or returns what its test expects only where its attack
works: "escaped", or a secret that it would have to read. `@name@` is replaced by the test (see
`fill`); the set beside a program holds the outcomes that it may end with.
"""

from __future__ import annotations

C = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
STUBBORN = {"error", "wrong"}  # the attack failed with an exception, or silently
TIME = {"timeout"}
KILLED = {"killed", "timeout"}  # whichever limit comes first on a busy machine

# Expected on stdout: "escaped".
STDIN: dict[str, tuple[str, set[str]]] = {
    "fork bomb": ("import os\nwhile True:\n    os.fork()\n    print('escaped')", STUBBORN),
    "fork by number": (C + "if libc.syscall(@nr_fork@, 17, 0, 0, 0, 0) >= 0: print('escaped')",
                       STUBBORN),
    "clone3": (C + "import struct\nargs = struct.pack('11Q', *[0] * 4, 17, *[0] * 6)\n"
               "if libc.syscall(435, args, len(args)) >= 0: print('escaped')", STUBBORN),
    "shell": ("import subprocess\nprint(subprocess.check_output('echo escaped', shell=True))",
              STUBBORN),
    "exec": ("import os\nos.execv('/bin/echo', ['echo', 'escaped'])", STUBBORN),
    "daemon": ("""
import os, time
for _ in range(2):
    if os.fork():
        os._exit(0)
    os.setsid()
open('@target@', 'w').write('alive')
print('escaped', flush=True)
time.sleep(60)""", STUBBORN),
    "memory bomb": ("x = [0]\nwhile True:\n    x += x\nprint('escaped')", {"memory", "timeout"}),
    "shared memory": ("import mmap\nkept = []\nfor _ in range(64):\n"
                      "    kept.append(mmap.mmap(-1, 64 << 20))\nprint('escaped')", STUBBORN),
    "memory in files": (C + "if libc.syscall(@nr_memfd@, b'x', 0) >= 0: print('escaped')",
                        STUBBORN),
    "system v memory": (C + "if libc.shmget(4711, 4096, 0o1666) >= 0: print('escaped')", STUBBORN),
    "thread bomb": ("""
import threading
started = 0
while True:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    started += 1
    if started > 5000: print('escaped')""", {"error", "memory", "timeout"}),
    "infinite output": ("while True: print('escaped' * 1000)", KILLED),
    "output that ignores its limit": ("""
import os, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
while True:
    try: os.write(1, b'escaped' * 100000)
    except OSError: pass""", TIME),
    "endless loop": ("while True: pass", TIME),
    "endless sleep": ("import time\nwhile True: time.sleep(1000)", TIME),
    "ignored signals": ("""
import signal
for number in range(1, 64):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True:
    try: signal.pause()
    except BaseException: pass""", TIME),
    "tcp": ("import socket\nsocket.create_connection(('127.0.0.1', @port@), 1)\nprint('escaped')",
            STUBBORN),
    "udp": ("import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            "s.sendto(b'x', ('127.0.0.1', @port@))\nprint('escaped')", STUBBORN),
    "unix socket": ("import socket\nsocket.socket(socket.AF_UNIX).connect('@socket@')\n"
                    "print('escaped')", STUBBORN),
    "io_uring": (C + "if libc.syscall(425, 8, ctypes.create_string_buffer(512)) >= 0:\n"
                 "    print('escaped')", STUBBORN),
    "home directory": ("import os\nif 'secret' in open('@secret@').read(): print('escaped')",
                       STUBBORN),
    "list of directories": (
        "import os\nfor name, known in (('@folder@', 'secret'), ('/etc', 'passwd'), ('/', 'proc')):"
        "\n    try:\n        if known in os.listdir(name): print('escaped')\n"
        "    except OSError: pass", STUBBORN),
    "environment": ("import os\nif 'ENTROPY_LAB_SECRET' in os.environ: print('escaped')",
                    STUBBORN),
    "environment of the parent": ("""
import os
for pid in ('self', '@pid@', str(os.getppid()), '1'):
    for name in ('environ', 'cmdline', 'maps', 'mem', 'root/etc/passwd', 'cwd', 'fd'):
        try:
            os.listdir(f'/proc/{pid}/{name}') if name == 'fd' else open(f'/proc/{pid}/{name}')
            print('escaped')
        except OSError: pass""", STUBBORN),
    "kill the parent": ("""
import os
for pid in (os.getppid(), @pid@, @server@, -1, 0):
    try:
        os.kill(pid, 9)
        print('escaped')
    except OSError: pass""", STUBBORN),
    "kill by a file's owner": ("""
import fcntl, os
reader, writer = os.pipe()
fcntl.fcntl(reader, fcntl.F_SETOWN, @server@)
print('escaped')""", STUBBORN),
    "ptrace": (C + "if libc.ptrace(16, @server@, 0, 0) == 0: print('escaped')", STUBBORN),
    "memory of the parent": (C + "import struct\nb = ctypes.create_string_buffer(8)\n"
                             "v = struct.pack('QQ', ctypes.addressof(b), 8)\n"
                             "if libc.process_vm_readv(@server@, v, 1, v, 1, 0) > 0:\n"
                             "    print('escaped')", STUBBORN),
    "limits of the parent": ("import resource\n"
                             "resource.prlimit(@server@, resource.RLIMIT_CPU, (1, 1))\n"
                             "print('escaped')", STUBBORN),
    "own limits": ("import resource\nfor what in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE):\n"
                   "    resource.setrlimit(what, (-1, -1))\nprint('escaped')", STUBBORN),
    "new namespaces": (C + "for flag in (0x10000000, 0x20000, 0x40000000):\n"
                       "    if libc.unshare(flag) == 0: print('escaped')\n"
                       "if libc.chroot(b'/tmp') == 0: print('escaped')\n"
                       "if libc.mount(b'x', b'/tmp', b'tmpfs', 0, b'') == 0: print('escaped')",
                       STUBBORN),
    "write outside": ("open('@target@', 'w').write('x')\nprint('escaped')", STUBBORN),
    "symlink": ("import os\nos.symlink('@secret@', 'link')\nopen('link').read()\n"
                "print('escaped')", STUBBORN),
    "hard link": ("import os\nos.link('@secret@', 'link')\nopen('link').read()\n"
                  "print('escaped')", STUBBORN),
    "dots": ("open('../' * 20 + '@secret@').read()\nprint('escaped')", STUBBORN),
    "rename out": ("import os\nopen('x', 'w').close()\nos.rename('x', '@target@')\n"
                   "print('escaped')", STUBBORN),
    "change the library": ("import os\nos.chmod(os.__file__, 0o777)\nprint('escaped')", STUBBORN),
    "empty the library": ("import os\nos.open(os.__file__, os.O_RDONLY | os.O_TRUNC)\n"
                          "print('escaped')", STUBBORN),
    "huge file": ("with open('x', 'wb') as f:\n    for _ in range(1000): f.write(bytes(1 << 20))\n"
                  "print('escaped')", {"killed", "error", "timeout"}),
    "sparse file": ("import os\nos.truncate(os.open('x', os.O_CREAT | os.O_RDWR), 1 << 40)\n"
                    "print('escaped')", {"killed", "error", "timeout"}),
    "many files": ("for number in range(100):\n    with open(f'x{number}', 'wb') as f:\n"
                   "        f.write(bytes(1 << 20))\nprint('escaped')", STUBBORN),
    "device": ("import os, stat\nos.mknod('x', stat.S_IFBLK | 0o600, os.makedev(254, 0))\n"
               "print('escaped')", STUBBORN),
    "terminal": ("import fcntl\nfcntl.ioctl(0, 0x5412, b'x')\nprint('escaped')", STUBBORN),
    "deep recursion": ("import sys\nsys.setrecursionlimit(10**9)\nx = []\n"
                       "for _ in range(10**6): x = [x]\nrepr(x)\nprint('escaped')",
                       {"killed", "memory", "error", "timeout"}),
    "stdout closed": ("import os, sys\nos.close(1)\nprint('escaped')", STUBBORN),
    "stdout object closed": ("import sys\nsys.stdout.close()", {"wrong"}),
    "exit before the work": ("import sys\nsys.exit(0)", {"wrong"}),
    "crash": (C + "ctypes.string_at(0)", KILLED),
    "open files of the server": ("import os\nfor fd in range(3, 1024):\n"
                                 "    try:\n        os.fstat(fd)\n        print('escaped')\n"
                                 "    except OSError: pass", STUBBORN),
    "import hook": ("import sys\nclass Hook:\n    def find_spec(self, name, *_):\n"
                    "        print('looked for', name)\nsys.meta_path.insert(0, Hook())\n"
                    "import nothing", STUBBORN),
}  # fmt: skip

# Expected from `f` for the argument 1: the secret, a string.
HUNT = """
import gc, re, sys
def f(x):
    seen = [repr(o)[:10000] for o in gc.get_objects()] + sys.argv
    frame = sys._getframe()
    while frame:
        seen += map(repr, [frame.f_locals, list(frame.f_code.co_consts)])
        frame = frame.f_back
    for text in seen:
        found = re.search('@head@[0-9a-f]{36}', text)
        if found:
            return found[0]
"""
EVERY_FD = """
import os
def tell(line):
    for fd in range(3, 64):
        try: os.write(fd, line)
        except OSError: pass
"""
CALLS: dict[str, tuple[str, set[str]]] = {
    "search of memory": (HUNT, STUBBORN),
    "an object equal to all": ("class E:\n    def __eq__(self, other): return True\n"
                               "    def __hash__(self): return 0\n"
                               "def f(x): return E()", {"wrong"}),
    "a string equal to all": ("class S(str):\n    def __eq__(self, other): return True\n"
                              "    __hash__ = str.__hash__\ndef f(x): return S('x')", {"wrong"}),
    "exit at the call": ("import os\ndef f(x): os._exit(0)", {"error"}),
    "exit before the call": ("import sys\nsys.exit(0)", {"error"}),
    "no JSON on the channel": (EVERY_FD + "def f(x): tell(b'}}}\\n'); return 1", KILLED),
    "nested JSON on the channel": (EVERY_FD + "def f(x): tell(b'[' * 200000 + b'\\n')", KILLED),
    "endless line on the channel": (EVERY_FD + "def f(x):\n    while True: tell(b'[' * 65536)",
                                    KILLED),
    "forged answer": (EVERY_FD + "def f(x): tell(b'{\"raised\": 7}\\n{\"passed\": 1}\\n')",
                      {"error", "killed", "wrong"}),
    "silence": ("import os\nfor fd in range(3, 64):\n    try: os.close(fd)\n"
                "    except OSError: pass\nwhile True: pass", KILLED),
    "nested answer": ("def f(x):\n    y = []\n    for _ in range(10**5): y = [y]\n    return y",
                      {"error", "wrong", "killed"}),
    "thread that stays": ("import threading\ndef spin():\n    while True: pass\n"
                          "def f(x):\n    threading.Thread(target=spin).start()\n    return 0",
                          {"wrong"}),
}  # fmt: skip

# Tested by `assert f(3) == 9` and `assert abs(f(0.5) - 0.25) < 1e-9`, in turn.
ASSERTS: dict[str, tuple[str, set[str]]] = {
    "an object equal to all": CALLS["an object equal to all"],
    "a number with its own operators": (
        "class N(float):\n    def __sub__(self, other): return 0.0\n    __rsub__ = __sub__\n"
        "    def __abs__(self): return 0.0\n    def __eq__(self, other): return True\n"
        "    def __lt__(self, other): return True\ndef f(x): return N(5)", {"wrong"}),
    "other builtins": ("import builtins\nbuiltins.abs = lambda x: 0\n"
                       "builtins.AssertionError = ValueError\ndef abs(x): return 0\n"
                       "def f(x): return 5", {"wrong"}),
    "forged report": (EVERY_FD + "def f(x):\n    tell(b'[\"passed\", \"\"]\\n' * 3)\n    return 5",
                      {"wrong", "error", "killed"}),
    "another checker": ("import sys\nsys.modules['jail.check'].run_checks = print\n"
                        "sys.modules['jail.check'].Proxy = print\ndef f(x): return 5", {"wrong"}),
    "exit at the call": ("import os\ndef f(x): os._exit(0)", {"error"}),
    "exit before the tests": ("raise SystemExit(0)", {"error"}),
    "assertions off": ("import sys\nsys.flags = None\n__debug__ = False\ndef f(x): return 5",
                       {"error", "wrong"}),
    "hunt for the assertion": (
        "import gc, re\ndef f(x):\n    for o in gc.get_objects():\n"
        "        m = re.search(r'f\\(3\\) == (\\d+)', repr(o)[:10000])\n"
        "        if m: return int(m[1])", {"wrong", "error"}),
    "endless call": ("def f(x):\n    while True: pass", TIME),
    "no return to the test": ("class F:\n    def __getattribute__(self, name):\n"
                              "        while True: pass\nf = F()", {"error"}),
}  # fmt: skip

SECRET_HEAD = "key-"


def fill(code: str, values: dict[str, object]) -> str:
    for name, value in values.items():
        code = code.replace(f"@{name}@", str(value))
    return code
