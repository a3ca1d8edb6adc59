from __future__ import annotations

import numpy as np
import pytest

from placket.protocols import bootstrap_interval


def test_interval_covers_the_true_mean():
    random = np.random.default_rng(0)
    hits = 0
    for trial in range(150):
        low, high = bootstrap_interval(random.beta(0.6, 0.4, size=80), resamples=300, seed=trial)
        hits += low <= 0.6 <= high
    # 95 % of 150 is 142, standard deviation 2.7; the percentile interval of 80 values is a little short.
    assert 133 <= hits <= 149


def test_interval_properties():
    values = np.random.default_rng(1).random(500)
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    assert (low, high) != bootstrap_interval(values, seed=1)
    # The normal approximation: 1.96 standard errors on each side.
    error = 1.96 * values.std() / np.sqrt(500)
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.1 * error)
    assert bootstrap_interval([0.25]) == (0.25, 0.25)
    with pytest.raises(ValueError, match=r"values must have shape \[n\] with n >= 1, got \[0\]"):
        bootstrap_interval([])
