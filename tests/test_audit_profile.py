"""Which factor explains a planted weight: shares of its variance, by cross-fitted trees."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from entropy_lab.analysis.audit.profile import Profile
from entropy_lab.analysis.audit.sums import Ledger
from entropy_lab.analysis.audit.tree import Tree
from entropy_lab.analysis.audit_tables import FACTORS


def profiled(weight_of, steps: int = 12, rows: int = 800) -> dict[str, float]:
    """The shares of a planted weight on independent factors, and the ledger's intervals."""
    rng = np.random.default_rng(3)
    profile, ledger = Profile.over(steps), Ledger()
    for _ in range(steps):
        p, h = rng.uniform(0.01, 1, rows), rng.gamma(1.0, 0.5, rows)
        a, r = rng.choice([-1.0, 0.5, 1.5], rows), np.exp(rng.normal(0, 0.2, rows))
        view = SimpleNamespace(
            advantage=a, ratio=r, unclipped=a * r / rows, logp=np.log(p), entropy=h,
            weight=np.ones(rows), group=np.arange(rows) % 8, groups=8,
            c={"planted": weight_of(p, h, a, r, rng) * a * r / rows},
        )  # fmt: skip
        ledger.begin(view.group, 8, view.weight)
        profile.add(view)  # type: ignore[arg-type]
    shares = profile.shares("planted", ledger)
    for value, low, high in shares.values():
        assert not low > value and not high < value
    return {name: number[0] for name, number in shares.items()}


@pytest.mark.parametrize("factor", FACTORS)
def test_a_weight_of_one_factor_is_explained_by_it_alone(factor: str) -> None:
    weights = {
        "clip": lambda p, h, a, r, _: np.where(np.where(a > 0, r - 1, 1 - r) > 0.2, 0.0, 1.0),
        "advantage": lambda p, h, a, r, _: np.where(a > 0, 1.1, 0.7),
        "probability": lambda p, h, a, r, _: 0.5 + p * (1 - p),
        "entropy": lambda p, h, a, r, _: np.exp(-h),
    }
    shares = profiled(weights[factor])
    assert shares[f"alone_{factor}"] > 0.99 and shares["explained"] > 0.99
    assert shares[f"only_{factor}"] > 0.97
    for other in set(FACTORS) - {factor}:
        # A ratio stops at 0 and has no upper end: how far it went says a little about A's sign.
        limit = 0.05 if {factor, other} == {"clip", "advantage"} else 0.02
        assert shares[f"alone_{other}"] < limit and abs(shares[f"only_{other}"]) < 0.02


def test_a_weight_of_two_factors_and_noise() -> None:
    """var: probability 1/12, advantage sign 2/9 (a third of the rows are below 0), noise 1/4."""
    shares = profiled(lambda p, h, a, r, rng: p + (a > 0) + 0.5 * rng.normal(size=len(p)))
    parts = {"probability": (0.99**2) / 12, "advantage": 2 / 9}
    total = sum(parts.values()) + 0.25
    for name, variance in parts.items():
        assert shares[f"alone_{name}"] == pytest.approx(variance / total, abs=0.03)
        assert shares[f"only_{name}"] == pytest.approx(variance / total, abs=0.03)
    assert shares["explained"] == pytest.approx(1 - 0.25 / total, abs=0.03)


def test_noise_is_not_explained_and_a_constant_weight_has_no_shares() -> None:
    noise = profiled(lambda p, h, a, r, rng: rng.normal(size=len(p)))
    assert all(abs(value) < 0.02 for value in noise.values())
    constant = profiled(lambda p, h, a, r, _: np.full(len(p), 0.8) * (1 + 1e-7 * (p > 0.5)))
    assert all(np.isnan(value) for value in constant.values())


def test_a_tree_finds_one_threshold_exactly() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3))
    y = np.where(x[:, 1] > 1.7, 3.0, -1.0)
    tree = Tree.fit(x, y)
    assert len(tree.cuts) == 1 and tree.cuts[0].column == 1
    np.testing.assert_allclose(tree.predict(x), y)
    assert tree.cuts[0].threshold == x[x[:, 1] > 1.7, 1].min()
    assert len(Tree.fit(x, np.ones(500)).means) == 1
