r"""R1: what share of known answers the mathematical reward gets right, and how fast it is.

    python -m benchmarks.rewards [--data FOLDER] [--workers N] [--rows N]

Bars: the ground truth in a \boxed{} response scores 1, and a changed one scores 0, on at least
99.9 % of the rows of DAPO-Math-17k and 99.5 % of the rows of every other file (each miss is
listed); at least 200 scored responses a second on two cores; a poisoned input costs its caller at
most its time limit. The files (verl's Parquet layout) are those of --data, where it exists.
`changed` says how an answer is changed: a number by one, a word or letter for another.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks._bars import line, note
from entropy_lab.train.rewards.math_judge import judged
from entropy_lab.train.rewards.pool import Pool

DATA = Path(__file__).parents[2] / "shared" / "data"
# Answers of files that are not at hand: AIME, Minerva, OlympiadBench, GSM8K.
WRITTEN = [
    "204", "025", "72", "1,080", "\\$18.90", "65,960", "2.19e6", "1e-10", "6.63 \\times 10^{-34}",
    "3.83 \\times 10^{35} \\text{ erg/s}", "0.0029", "4080 \\text{ K}", "x_{0} \\cos (\\omega t)",
    "\\frac{1}{2} \\arcsin (2 x)", "y=2 x-4", "m \\ge 5", "[2, 5)", "(-\\infty, 3]", "x < 5",
    "(2, 3), (3, 2)", "(1, 2, 3)", "\\{1, 2, 4\\}", "\\pm 3", "1 \\pm \\sqrt{5}", "x = 3, y = 4",
    "2^{1009}", "2n^2 + 3n", "\\frac{n(n+1)}{2}", "\\sqrt[3]{7}", "\\log_2 5", "45^\\circ", "75\\%",
    "7 \\frac{1}{2}", "\\text{(C)}", "D", "\\text{Tuesday}", "4210_{5}", "0.\\overline{27}",
    "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", "i \\sqrt{3}", "\\frac{\\pi}{6}", "e^{2}",
    "(0, 1) \\cup (4, \\infty)", "12 \\text{ cm}^2", "3:4", "\\binom{10}{3}", "7!",
]  # fmt: skip
POISON = ["9^{9^{9^{9}}}", "(10^{10})!", "\\binom{10^9}{10^8}", "(x+y+z+w)^{300}", "\\left(" * 150]
_NUMBER = re.compile(r"\d+")


def changed(answer: str, by: int = 1) -> str:
    """Another answer of the same kind: its first number that is no exponent or index plus `by`.

    Without a number a word or letter becomes another one.
    """
    for match in _NUMBER.finditer(answer):
        before = answer[: match.start()].rstrip("{ ")
        if not before.endswith(("^", "_")) or match.start() == 0:
            return answer[: match.start()] + str(int(match.group()) + by) + answer[match.end() :]
    if match := re.search(r"(?<![\\A-Za-z])[A-Za-z]+", re.sub(r"\\text", "     ", answer)):
        other = "west" if len(match.group()) > 1 else ("A" if match.group() == "B" else "B")
        return answer[: match.start()] + other + answer[match.end() :]
    return f"{answer}+{by}"


def truths(path: Path) -> list[str]:
    table = pq.read_table(path, columns=["reward_model"])
    return [row["ground_truth"] for row in table.column("reward_model").to_pylist()]


def measure(name: str, answers: list[str], pool: Pool, bar: float) -> None:
    """Print the shares of right verdicts, each miss, and the speed."""
    said = "<think>\nPerhaps \\boxed{0}.\n</think>\nHence the answer is $\\boxed{%s}$."
    wrong = [changed(a) for a in answers]
    started = time.perf_counter()
    for what, given, expected in (("right", answers, 1.0), ("changed", wrong, 0.0)):
        verdicts = judged(pool, [said % a for a in given], answers)
        rows = zip(answers, given, verdicts, strict=True)
        misses = [(a, g, v) for a, g, v in rows if v.reward != expected]
        share = 1 - len(misses) / len(answers)
        demand = f">= {bar:.1%}"
        line("R1", f"{name}: {what} answers, {len(given)}", f"{share:.2%}", demand, share >= bar)
        for answer, other, verdict in sorted(set(misses), key=str):
            print(f"      {answer!r}: {other!r} scored {verdict.reward} {verdict.note}")
    speed = 2 * len(answers) / (time.perf_counter() - started)
    note(f"  responses a second, {len({*answers})} different answers", f"{speed:.0f}")


def speed(pool: Pool, answers: list[str]) -> None:
    """Groups of 8 as in a rollout: four right responses and four that are wrong in other ways."""
    texts, golds = [], []
    for answer in dict.fromkeys(answers):
        given = [answer] * 4 + [changed(answer, by) for by in range(1, 5)]
        texts += [f"\\boxed{{{g}}}" for g in given]
        golds += [answer] * 8
    pool.compare([("1", f"\\sqrt{{{k}}}") for k in range(2, 50)])  # all processes are up
    started = time.perf_counter()
    judged(pool, texts, golds)
    rate = len(texts) / (time.perf_counter() - started)
    what = f"responses/s, groups of 8, {pool.workers} processes"
    line("R1", what, f"{rate:.0f}", ">= 200", rate >= 200)


def poison(pool: Pool) -> None:
    """The longest that one poisoned input costs in wall time, and what it does to others."""
    slowest = 0.0
    for bad in POISON:
        started = time.perf_counter()
        [verdict] = judged(pool, [f"\\boxed{{{bad}}}"], ["34"])
        slowest = max(slowest, time.perf_counter() - started)
        assert verdict.reward == 0.0
        pool.compare([("1", "1")])  # the process that takes its place is up
    limit = pool.timeout
    met = slowest <= limit * 1.1
    line("R1", f"slowest poisoned input, limit {limit} s", f"{slowest:.2f}", "<= its limit", met)
    texts = [f"\\boxed{{{bad}}}" for bad in (*POISON, *["34"] * 500)]
    started = time.perf_counter()
    verdicts = judged(pool, texts, ["34"] * len(texts))
    note(f"  s for {len(POISON)} of them among 500 others", f"{time.perf_counter() - started:.1f}")
    assert [v.reward for v in verdicts] == [0.0] * len(POISON) + [1.0] * 500


def main() -> None:
    parser = argparse.ArgumentParser(description="R1: the mathematical reward")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of Parquet files")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=0, help="of each file; 0: all")
    args = parser.parse_args()
    pool = Pool(args.workers)
    started = time.perf_counter()
    pool.compare([("1", "\\sqrt{1}")])
    note("s until the first verdict", f"{time.perf_counter() - started:.1f}")
    everything: list[str] = []
    for path in sorted(args.data.glob("*.parquet")):
        answers = truths(path)[: args.rows or None]
        everything += answers if path.stem != "DAPO-Math-17k" else []
        measure(path.stem, answers, pool, 0.999 if path.stem.startswith("DAPO") else 0.995)
    measure("written by hand", WRITTEN, pool, 0.995)
    speed(pool, everything + WRITTEN)
    poison(pool)
    pool.close()


if __name__ == "__main__":
    main()
