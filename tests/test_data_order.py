"""The order of training problems: permutations, weights, and a function of the position alone."""

from __future__ import annotations

from collections import Counter

import pytest

from entropy_lab.train.tasks.data import Order


def stream(order: Order, n: int, seed: str = "0") -> list[int]:
    return order.rows(seed, 0, n)


def test_each_epoch_is_a_permutation_of_all_rows_and_another_one() -> None:
    order = Order((7, 5), (1.0, 1.0))
    assert order.epoch == 12
    rows = stream(order, 60)
    epochs = [rows[i : i + 12] for i in range(0, 60, 12)]
    assert all(sorted(e) == list(range(12)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 5
    # The places that a file takes within an epoch are others each time.
    assert len({tuple(row < 7 for row in e) for e in epochs}) > 1
    # Files are mixed: the first seven are not all of the first file.
    assert any(set(e[:7]) != set(range(7)) for e in epochs)
    assert stream(order, 60, "1") != rows


@pytest.mark.parametrize("size", [1, 3, 5, 13])
def test_the_stream_does_not_depend_on_how_it_is_cut(size: int) -> None:
    order = Order((7, 5), (1.0, 0.5))
    whole = stream(order, 50)
    cut = [row for first in range(0, 50, size) for row in order.rows("0", first, size)]
    assert cut[:50] == whole
    assert Order((7, 5), (1.0, 0.5)).rows("0", 31, 4) == whole[31:35]  # nothing is remembered


def test_weights_say_how_often_the_rows_of_a_file_come_up() -> None:
    """Ten rows at weight 0.3, four at 2, five at 1: in ten epochs 3, 20 and 10 times each."""
    order = Order((10, 4, 5), (0.3, 2.0, 1.0))
    assert order.takes == (3, 8, 5) and order.epoch == 16
    counts = Counter(stream(order, 160))
    assert {counts[i] for i in range(10)} == {3}
    assert {counts[i] for i in range(10, 14)} == {20}
    assert {counts[i] for i in range(14, 19)} == {10}
    for epoch in range(10):  # within an epoch as even as can be
        found = Counter(order.rows("0", 16 * epoch, 16))
        assert {found[i] for i in range(10, 14)} == {2} and sum(found[i] for i in range(10)) == 3
    assert Order((10,), (0.01,)).takes == (1,)


def test_a_light_file_is_gone_through_whole_before_it_repeats() -> None:
    rows = stream(Order((9,), (1 / 3,)), 27)
    turns = [rows[i : i + 9] for i in range(0, 27, 9)]
    assert all(sorted(turn) == list(range(9)) for turn in turns)
    # Each turn is cut otherwise: a third that came together need not come together again.
    assert len({frozenset(rows[i : i + 3]) for i in range(0, 27, 3)}) > 3


def test_without_shuffling_rows_come_as_they_stand() -> None:
    order = Order((3, 2), (1.0, 1.0), shuffle=False)
    assert stream(order, 12) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert stream(Order((3, 2), (1.0, 2.0), shuffle=False), 7) == [0, 1, 2, 3, 4, 3, 4]


def test_every_position_is_equally_likely_for_every_row() -> None:
    """2,400 seeds: each of 4 rows is first about 600 times; four standard deviations are 85."""
    counts = Counter(Order((4,), (1.0,)).rows(str(seed), 0, 1)[0] for seed in range(2400))
    assert all(abs(counts[row] - 600) < 85 for row in range(4))
