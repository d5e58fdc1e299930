"""Coding problems with an honest solution each, in every layout of tests that is read.

Written for these tests. `PROBLEMS` maps a name to (program, tests); each program passes all of its
tests, and `wrong_test` gives the same tests with one expected value changed.
"""

from __future__ import annotations

import copy
import json
from typing import Any


def stdin(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {"inputs": [p[0] for p in pairs], "outputs": [p[1] for p in pairs]}


def calls(name: str, *pairs: tuple[list[Any], Any]) -> dict[str, Any]:
    return {"fn_name": name, "inputs": [p[0] for p in pairs], "outputs": [p[1] for p in pairs]}


def lcb(name: str, *pairs: tuple[list[Any], Any]) -> list[dict[str, Any]]:
    return [
        {
            "input": "\n".join(map(json.dumps, given)),
            "output": json.dumps(result),
            "testtype": "functional",
            "metadata": {"func_name": name},
        }
        for given, result in pairs
    ]


PROBLEMS: dict[str, tuple[str, Any]] = {
    "sum of a line": ("print(sum(map(int, input().split())))",
                      stdin(("1 2 3\n", "6\n"), ("-5\n", "-5"))),
    "input until its end": ("import sys\nprint(sum(len(line.split()) for line in sys.stdin))",
                            stdin(("a b\nc\n", "3"), ("", "0"))),
    "end of file is an error": ("n = 0\ntry:\n    while True:\n        n += int(input())\n"
                                "except EOFError:\n    print(n)", stdin(("1\n2\n3", "6"))),
    "bytes": ("import sys\ndata = sys.stdin.buffer.read().split()\n"
              "sys.stdout.buffer.write(b'%d\\n' % max(map(int, data)))", stdin(("3 9\n4", "9"))),
    "descriptor": ("import os\nos.write(1, os.read(0, 100)[::-1])", stdin(("abc", "cba"))),
    "main guard": ("def main():\n    print(input()[::-1])\nif __name__ == '__main__':\n    main()",
                   stdin(("abc\n", "cba"))),
    "thread with a large stack": (
        "import sys, threading\nsys.setrecursionlimit(1 << 20)\nthreading.stack_size(1 << 27)\n"
        "def depth(n): return 0 if n == 0 else 1 + depth(n - 1)\n"
        "def main(): print(depth(int(input())))\n"
        "threading.Thread(target=main).start()", stdin(("20000\n", "20000"))),
    "raised stack limit": (
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_STACK, (-1, -1))\n"
        "sys.setrecursionlimit(10**6)\ndef f(n): return n and 1 + f(n - 1)\n"
        "print(f(int(input())))", stdin(("30000\n", "30000"))),
    "exit": ("x = int(input())\nif x > 1:\n    print('big')\n    exit()\nprint('small')",
             stdin(("2\n", "big"), ("1\n", "small"))),
    "exit handler": ("import atexit, sys\natexit.register(print, 'end')\nprint(input())\n"
                     "sys.exit(0)", stdin(("x\n", "x\nend"))),
    "names without an import": (
        "q = deque([1, 2])\nq.append(gcd(12, 18))\nprint(*accumulate(q), ceil(sqrt(2)), inf)",
        stdin(("", "1 3 9 2 inf"))),
    "many lines": ("n = int(input())\nfor i in range(n): print(i)",
                   stdin(("50000\n", "\n".join(map(str, range(50000)))))),
    "spaces and blank lines": ("print('1 2 ')\nprint('  3')\nprint()", stdin(("", "1 2\n3"))),
    "decimals": ("print(1.0, '2.50', 1e3)", stdin(("", "1 2.5 1000"))),
    "large integers": ("print(pow(7, 1000))", stdin(("", str(7**1000)))),
    "primes": ("n = int(input())\nsieve = bytearray([1]) * (n + 1)\nsieve[:2] = b'\\0\\0'\n"
               "for p in range(2, int(n**0.5) + 1):\n    if sieve[p]:\n"
               "        sieve[p * p :: p] = bytes(len(range(p * p, n + 1, p)))\nprint(sum(sieve))",
               stdin(("100\n", "25"), ("100000\n", "9592"))),
    "shortest path": (
        "import heapq\nn, m = map(int, input().split())\ng = {i: [] for i in range(n)}\n"
        "for _ in range(m):\n    a, b, w = map(int, input().split())\n    g[a].append((b, w))\n"
        "d = {0: 0}\nh = [(0, 0)]\nwhile h:\n    x, a = heapq.heappop(h)\n"
        "    for b, w in g[a]:\n        if x + w < d.get(b, 1e9):\n            d[b] = x + w\n"
        "            heapq.heappush(h, (x + w, b))\nprint(d[n - 1])",
        stdin(("3 3\n0 1 5\n1 2 1\n0 2 9\n", "6"))),
    "arrays": ("import numpy as np\nprint(int(np.arange(int(input())).sum()))",
               stdin(("5\n", "10"))),
    "list layout": ("print(int(input()) * 2)",
                    [{"input": "2\n", "output": "4\n", "testtype": "stdin"}]),
    "json text": ("print(int(input()) * 2)", json.dumps(stdin(("2\n", "4\n")))),
    "two sum": ("class Solution:\n    def twoSum(self, nums: List[int], target: int):\n"
                "        seen = {}\n        for i, x in enumerate(nums):\n"
                "            if target - x in seen: return [seen[target - x], i]\n"
                "            seen[x] = i",
                lcb("twoSum", ([[2, 7, 11], 9], [0, 1]), ([[3, 3], 6], [0, 1]))),
    "tuple for a list": ("def minmax(xs): return min(xs), max(xs)",
                         lcb("minmax", ([[3, 1, 2]], [1, 3]))),
    "memory between calls": ("@cache\ndef fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)",
                             calls("fib", ([10], 55), ([90], 2880067194370816120))),
    "dict": ("def count(s): return Counter(s)", calls("count", (["aab"], {"a": 2, "b": 1}))),
    "integer keys": ("def squares(n): return {i: i * i for i in range(n)}",
                     calls("squares", ([2], {"0": 0, "1": 1}))),
    "wrapped outputs": ("def double(x): return 2 * x", calls("double", ([1], [2]), ([2], [4]))),
    "truth and nothing": ("def even(x): return None if x < 0 else x % 2 == 0",
                          calls("even", ([2], True), ([3], False), ([-1], None))),
    "prints as it goes": ("def f(x):\n    print('debug', x)\n    return x + 1",
                          calls("f", ([1], 2))),
    "data class": ("from dataclasses import dataclass\n@dataclass(order=True)\nclass P:\n"
                   "    x: int\n    y: int = 0\n"
                   "def top(xs): return max(P(x) for x in xs).x", calls("top", ([[1, 3, 2]], 3))),
    "asserts": ("def add(a, b):\n    return a + b",
                ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'"]),
    "name of a builtin": ("def sum(a, b):\n    return a + b",
                          {"test_list": ["assert sum(10, 15) == 25"], "test_setup_code": ""}),
    "sets and tuples": ("def common(a, b): return set(a) & set(b)",
                        {"test_list": ["assert set(common((3, 4, 5), (5, 7, 4))) == set((4, 5))",
                                       "assert common([1], [1]) == {1}"]}),
    "a module in the tests": ("def area(r): return 3.141592653589793 * r * r",
                              {"test_list": ["assert math.isclose(area(2), 12.566370614359172)"],
                               "test_imports": ["import math"]}),
    "objects": ("class Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\n"
                "def chain(pairs): return max(p.b - p.a for p in pairs)",
                ["assert chain([Pair(5, 24), Pair(15, 25)]) == 19", "assert Pair(1, 2).b == 2"]),
    "a tree": (
        "class Node:\n    def __init__(self, x):\n"
        "        self.x, self.left, self.right = x, None, None\n"
        "def height(n): return 0 if n is None else 1 + max(height(n.left), height(n.right))",
        {"test_setup_code": "root = Node(1)\nroot.left = Node(2)\nroot.left.left = Node(4)",
         "test_list": ["assert height(root) == 3", "assert height(root.right) == 0"]}),
    "generator": ("def up(n):\n    for i in range(n): yield i",
                  ["assert list(up(3)) == [0, 1, 2]"]),
    "an expected exception": (
        "def root(x):\n    if x < 0: raise ValueError('negative')\n    return x ** 0.5",
        ["try:\n    root(-1)\nexcept ValueError as e:\n    found = str(e)\n"
         "assert found == 'negative'"]),
    "check of a candidate": (
        "def has_close(xs, t):\n    return any(abs(a - b) < t for i, a in enumerate(xs) "
        "for b in xs[:i])",
        {"entry_point": "has_close", "test": "METADATA = {'author': 'x'}\n\ndef check(candidate):\n"
         "    assert candidate([1.0, 2.0, 3.9], 0.3) == False\n"
         "    assert candidate([1.0, 2.0, 2.2], 0.3) is True\n"}),
    "helper from the prompt": (
        "def root(xs):\n    return -xs[0] / xs[1]",
        {"entry_point": "root",
         "prompt": "def poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n\n\n"
                   "def root(xs):\n    '''A root of poly.'''\n",
         "test": "def check(candidate):\n    for xs in ([1, 2], [-3, 6]):\n"
                 "        assert abs(poly(xs, candidate(copy.deepcopy(xs)))) < 1e-9\n"}),
}  # fmt: skip


def wrong_test(tests: Any) -> Any:
    """The same tests, of which one expects something else."""
    if isinstance(tests, str):
        return json.dumps(wrong_test(json.loads(tests)))
    tests = copy.deepcopy(tests)
    if isinstance(tests, dict) and "outputs" in tests:
        tests["outputs"][-1] = "another" if "fn_name" not in tests else ["another", 1]
    elif isinstance(tests, dict) and "test" in tests:
        tests["test"] = tests["test"].replace("assert ", "assert not ", 1)
    elif isinstance(tests, dict):
        tests["test_list"] = wrong_test(tests["test_list"])
    elif isinstance(tests[0], dict):
        tests[-1]["output"] = '"another"'
    else:
        head, _, claim = tests[-1].rpartition("assert ")
        tests[-1] = f"{head}assert not ({claim})"
    return tests
