"""Quantiles against numpy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from entropy_lab.stats.quantile import quantile

SHARES = (0.0, 0.2, 0.4, 0.5, 0.73, 0.8, 1.0)


@pytest.mark.parametrize("count", [1, 2, 5, 8, 16, 486, 1001])
@pytest.mark.parametrize(("interpolate", "method"), [(True, "linear"), (False, "inverted_cdf")])
def test_quantiles_equal_numpy_s_in_any_order(count: int, interpolate: bool, method: str) -> None:
    values = np.random.default_rng(count).normal(size=count).round(1)
    for q in SHARES:
        wanted = np.quantile(values, q, method=method)
        for order in (values, values[::-1], np.sort(values)):
            found = quantile(torch.tensor(order.copy()), q, interpolate)
            assert found.item() == pytest.approx(wanted, abs=1e-12), q


def test_a_place_on_a_value_is_that_value_whatever_the_last_bit_of_q_says() -> None:
    x = torch.arange(31.0)
    assert quantile(x, 0.1 + 0.2).item() == 9.0
    # 0.28 * 25 is 7.000000000000001, whose ceiling is one value too far.
    assert quantile(torch.arange(25.0), 0.28, interpolate=False).item() == 6.0


def test_what_has_no_quantile_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 0 values and q = 0\.5: pass at least one value"):
        quantile(torch.zeros(0), 0.5)
    with pytest.raises(ValueError, match=r"got 3 values and q = 1\.5: .* a q in \[0, 1\]"):
        quantile(torch.zeros(3), 1.5)
