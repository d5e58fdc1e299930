"""Answers: which part of a response is read, what is equal to what, on known files too."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rewards import DATA, WRITTEN, changed, truths
from entropy_lab.errors import ConfigError
from entropy_lab.train.rewards.answers import answer_of
from entropy_lab.train.rewards.equality import same_answer
from entropy_lab.train.rewards.literals import number
from entropy_lab.train.rewards.math_judge import judged
from entropy_lab.train.rewards.notation import notation
from entropy_lab.train.rewards.pool import Pool


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    shared = Pool(workers=2, timeout=30.0)
    yield shared
    shared.close()


# --- which part of a response is the answer ---------------------------------------------------

STATED = {
    r"so $\boxed{34}$.": "34",
    r"\boxed{1} no, \boxed{2}, or \boxed{3}": "3",  # only the last one counts
    r"\boxed{\frac{1}{2}} done": r"\frac{1}{2}",
    r"\boxed{\left\{ x : x > 1 \right.}": r"\left\{ x : x > 1 \right.",  # \{ opens no group
    r"\fbox{7}": "7",
    r"\boxed {7}": "7",
    r"so \boxed 5$": "5",
    r"\boxed{3} or \boxed{4": None,  # cut off inside the last box
    r"\boxed{}": None,
    "Answer: 34": "34",
    "Answer: $34": "$34",  # DAPO's prompt shows the form "Answer: $Answer"
    "**Answer:** 34": "34",
    "**Answer: 34**": "34",
    "### Final Answer:\n\n34\nThat is all.": "34",
    "The final answer: 34": "34",
    "Answer: 33\nAnswer: 34": "34",
    "Answer:\n\\[\n34\n\\]": "34",
    "Final Answer: The final answer is $540$. I hope it is correct.": "540",
    r"\boxed{34}" + "\nAnswer: The number of ways.": "34",  # a box is preferred
    "so we get 72.\n#### 72": "72",
    "#### 1. First step\nthen": None,  # a heading
    "#### $1,080": "$1,080",
    "I think the answer: 34": "34",
    "the result is 34": None,
    "": None,
    r"<think>\boxed{1}</think> \boxed{2}": "2",
    r"\boxed{1}</think> It is two.": None,
    r"\boxed{2} <think> \boxed{1}": "2",
    "\\boxed{a\0b}": "a\0b",
}


@pytest.mark.parametrize("response", STATED)
def test_the_answer_of_a_response(response: str) -> None:
    assert answer_of(response) == STATED[response]


@given(st.text(), st.text(alphabet="0123456789+-*/=x ", min_size=1).filter(str.strip))
def test_whatever_comes_first_the_last_box_is_read(before: str, answer: str) -> None:
    text = before.replace("<think>", "") + " $\\boxed{" + answer + "}$ done"
    assert answer_of(text) == answer.strip()


@given(st.text())
def test_a_thinking_block_does_not_matter(thoughts: str) -> None:
    said = "Hence \\boxed{5}."
    assert answer_of("<think>" + thoughts + "</think>" + said) == "5"


# --- equality -----------------------------------------------------------------------------------

SAME = """
34 | 34.0
1,234 | 1234
1{,}234 | 1\\,234
\\frac12 | 0.5
\\frac{270}7 | 270/7
1\\frac{4}{5} | 1 4/5
1\\frac{4}{5} | 9/5
0.\\overline{3} | 1/3
\\frac{1}{3} | 0.333333
\\frac{1}{60} | 0.016667
50\\% | 0.5
50 | 50 percent
\\$18.90 | 18.9
90^\\circ | 90°
5 | 5 \\text{ cm}^2
3.0e8 | 3 \\times 10^8 \\text{ m/s}
6.63 \\times 10^{-34} | 6.63e-34
x=5 | 5
5 | n = 2 + 3 = 5
y=-2x | -2x
5x-7y+11z+4=0 | 10x-14y+22z+8=0
(1,2] | \\left( 1, 2 \\right]
(2,\\infty) | x > 2
x < 5 | (-\\infty, 5)
-1 \\le x \\le 2 | [-1, 2]
(0,9)\\cup(9,36) | (9,36) \\cup (0,9)
(1,-16,-4) | \\langle 1, -16, -4 \\rangle
3,5,7 | 7, 5, 3
3,5 | \\{5, 3\\}
100,200 | 200, 100
1 \\text{ and } 2 | 2, 1
1,2 | x = 1 \\text{ or } x = 2
x=1,y=2 | y = 2, x = 1
3\\pm2\\sqrt{2} | 3-2\\sqrt2, 3+2\\sqrt2
\\{1\\pm\\sqrt{5},-2\\} | -2, 1-\\sqrt5, 1+\\sqrt5
\\begin{pmatrix}-1&0\\\\0&1/2\\end{pmatrix} | \\begin{bmatrix} -1 & 0 \\\\ 0 & 0.5 \\end{bmatrix}
4210_{5} | 4210_5
4210_{5} | 4210
(B) | \\text{B}
(B) | \\textbf{(B)}\\ 12
B | (b)
\\text{Evelyn} | evelyn
\\text{no real roots} | No real roots
\\cotx | \\cot x
p-q | -q+p
x^2+2x+1 | (x+1)^2
\\frac{\\sqrt{3}}{3} | \\frac{1}{\\sqrt3}
12\\pi | 12π
1024 | 2^{10}
\\binom{5}{2} | 10
6+9i | 9i+6
\\emptyset | \\varnothing
\\sqrt{2} | 1.414214
"""
DIFFERENT = """
34 | 35
34 | 34.001
1,234 | 1,235
14/5 | 1 4/5
23 | 2 3
.0000672 | .0000673
1.5e-10 | 2.5e-10
1.5\\times10^{-10}\\pi | 2.5\\times10^{-10}\\pi
\\frac{1}{3} | 0.333
50\\% | 0.05
east | seat
even | odd
4210_5 | 4210_6
4210_5 | 4211
(8,-2) | (9,-2)
(5,1) | (7,1)
(1,2) | (2,1)
[1,2] | (1,2)
\\{0,1\\} | (0,1)
1 | 1, 2, 3
1,2 | 1, 2, 3
1,2,3 | 1, 2
34 | 34 \\text{ or } 35
x=5 | y=5
x<5 | x>5
x<5 | x \\le 5
(B) | C
B | B + C
k | K
3m | 3h
2xy | 2ab
5 | 5x
\\infty | -\\infty
12\\pi | 12
x^2 | x^3
2^{-30} | 0.000000001
(5,1] | (7,1]
\\begin{pmatrix}1\\\\2\\end{pmatrix} | \\begin{pmatrix}2\\\\1\\end{pmatrix}
34 |
"""


def pairs(table: str) -> list[tuple[str, str]]:
    cells = [line.split(" |") for line in table.strip().splitlines()]
    return [(gold.strip(), answer.strip()) for gold, answer in cells]


def test_answers_that_a_reader_takes_as_equal_are(pool: Pool) -> None:
    asked = pairs(SAME)
    missed = [p for p, (same, _) in zip(asked, pool.compare(asked), strict=True) if not same]
    assert missed == []


def test_answers_that_differ_are_told_apart(pool: Pool) -> None:
    asked = pairs(DIFFERENT)
    taken = [p for p, (same, _) in zip(asked, pool.compare(asked), strict=True) if same]
    assert taken == []


@pytest.mark.parametrize("name", ["DAPO-Math-17k", "aime24", "amc23", "math500", "written"])
def test_known_answers_score_one_and_changed_ones_zero(name: str, pool: Pool) -> None:
    path = DATA / f"{name}.parquet"
    if name != "written" and not path.is_file():
        pytest.skip(f"{path} is not here")
    answers = WRITTEN if name == "written" else truths(path)
    right = judged(pool, [rf"Hence $\boxed{{{a}}}$." for a in answers], answers)
    wrong = judged(pool, [rf"Hence $\boxed{{{changed(a)}}}$." for a in answers], answers)
    assert [a for a, v in zip(answers, right, strict=True) if v.reward != 1.0] == []
    assert [a for a, v in zip(answers, wrong, strict=True) if v.reward != 0.0] == []


@given(st.fractions(max_denominator=10**6), st.integers(1, 9))
def test_fractions_are_compared_exactly(value: Fraction, k: int) -> None:
    top, bottom = value.numerator, value.denominator
    forms = [
        f"{top}/{bottom}",
        rf"\frac{{{top * k}}}{{{bottom * k}}}",
        rf"\dfrac{{{top}}}{{{bottom}}}",
    ]
    for form in forms:
        read = number(notation(form))
        assert read is not None and read.value == value
        assert same_answer(form, forms[0])
        assert not same_answer(form, rf"\frac{{{top + bottom}}}{{{bottom}}}")


@given(st.text(alphabet=r"0123456789.,/-+^_{}()[]\ $%xmefrac", max_size=60))
def test_any_text_is_read_as_a_number_or_not(text: str) -> None:
    read = number(notation(text))
    assert read is None or isinstance(read.value, Fraction)


def test_one_of_several_accepted_answers_will_do(pool: Pool) -> None:
    truth = ["(A)", "12"]
    found = judged(pool, [r"\boxed{12}", r"\boxed{A}", r"\boxed{B}"], [truth] * 3)
    assert [v.reward for v in found] == [1.0, 1.0, 0.0]
    worked = r"Since $3 \cdot 4 = 12$, it is $\boxed{12}$."
    assert judged(pool, [r"\boxed{12}", "#### 72"], [worked, "so 72\n#### 72"])[1].reward == 1.0
    assert judged(pool, [r"\boxed{12}"], [worked])[0].reward == 1.0
    assert judged(pool, [r"\boxed{12}"], [12])[0].reward == 1.0
    with pytest.raises(ConfigError, match="None is no ground truth for the math reward: give a"):
        judged(pool, [r"\boxed{12}"], [None])
