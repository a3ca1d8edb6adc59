"""The threshold algorithm finds what scoring every item finds, in the same order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from placket.index.threshold import (
    Best,
    Ranked,
    cosines,
    rescored,
    rounding,
    weighted_sum,
    weighted_top_k,
)

Array = NDArray[np.float32]
Rows = NDArray[np.int64]


class Lists:
    """Spaces of which the cosines ``[Q, N, S]`` are given; ``noise`` is how far its lists are off."""

    def __init__(
        self, cosines: Array, weights: Sequence[float], noise: float = 0.0, gone: Rows | None = None
    ):
        self.cosines, self.weights = cosines, weights
        self.gone = np.zeros(0, np.int64) if gone is None else gone
        self.listed = cosines + np.random.default_rng(5).uniform(-noise, noise, cosines.shape)
        self.deepest_asked, self.scored, self.asked_for_all = 0, 0, False

    def ranked(self, space: int, queries: Rows, depth: int) -> list[Ranked]:
        assert self.weights[space], "a space of weight 0 is of no use"
        self.deepest_asked = max(self.deepest_asked, depth)
        found = []
        for query in queries:
            column = self.listed[query, :, space].astype(np.float32)
            # Whoever is added last comes first among equals: the worst order there is.
            rows = np.lexsort((-np.arange(len(column)), -np.sign(self.weights[space]) * column))[:depth]
            found.append(Ranked(rows.astype(np.int64), column[rows]))
        return found

    def exact(self, queries: Rows, rows: Rows) -> Array:
        self.scored += len(rows)
        found: Array = self.cosines[queries, rows]
        found[np.isin(rows, self.gone)] = np.nan
        return found

    def everything(self) -> Rows:
        self.asked_for_all = True
        return np.arange(self.cosines.shape[1])

    def brute_force(self, k: int) -> list[Best]:
        best = []
        for each in self.cosines:
            scores = weighted_sum(each, self.weights)
            rows = np.lexsort((np.arange(len(scores)), -scores))
            rows = rows[~np.isin(rows, self.gone)][:k]
            best.append(Best(rows, scores[rows], each[rows]))
        return best

    def check(self, k: int, slack: float = 0.0, first: int = 2, deepest: int = 10**9) -> None:
        found = weighted_top_k(
            self.ranked,
            self.exact,
            self.everything,
            self.weights,
            queries=len(self.cosines),
            k=k,
            slack=slack,
            first=first,
            deepest=deepest,
        )
        for best, expected in zip(found, self.brute_force(k), strict=True):
            np.testing.assert_array_equal(best.rows, expected.rows)
            np.testing.assert_array_equal(best.scores, expected.scores)
            np.testing.assert_array_equal(best.cosines, expected.cosines)
        assert not self.asked_for_all or deepest < 10**9


def _random(items: int, spaces: int, queries: int = 3, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (queries, items, spaces)).astype(np.float32)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0], [0.7, -0.2, 3.0], [-1.0, -1.0], [0.0, 1.0, 0.0]])
@pytest.mark.parametrize("k", [1, 10, 499, 500, 501])
def test_random_lists(weights: list[float], k: int) -> None:
    Lists(_random(500, len(weights)), weights).check(k)


def test_best_are_at_the_end_of_every_list_but_one() -> None:
    items = 1000
    rise = np.linspace(-1, 1, items, dtype=np.float32)
    # Two spaces in opposite order: the sum is nearly flat, and its peak is in the middle of both lists.
    cosines = np.stack([rise, -rise + 0.01 * (1 - rise**2)], axis=1)[None].astype(np.float32)
    lists = Lists(cosines, [1.0, 1.0])
    lists.check(5)
    assert lists.deepest_asked >= items // 2


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, -1.0]])
def test_ties_are_as_added(weights: list[float]) -> None:
    tied = np.zeros((1, 300, 2), np.float32)
    Lists(tied, weights).check(7)
    few_values = np.random.default_rng(1).integers(-1, 2, (4, 300, 2)).astype(np.float32)
    Lists(few_values, weights).check(20)


def test_ties_at_the_last_place_are_looked_for_below_the_lists() -> None:
    cosines = np.zeros((1, 64, 1), np.float32)
    cosines[0, -2:] = 1.0
    lists = Lists(cosines, [1.0])
    lists.check(3)
    assert lists.deepest_asked >= 64


@pytest.mark.parametrize("noise", [1e-6, 1e-3, 0.2])
def test_lists_may_be_off_by_the_slack(noise: float) -> None:
    cosines = np.repeat(_random(100, 3), 4, axis=1)
    Lists(cosines, [1.0, 0.5, -2.0], noise).check(10, slack=noise)


@pytest.mark.parametrize("spaces", [1, 3])
def test_item_whose_listed_cosines_are_too_low_is_found(spaces: int) -> None:
    slack = 0.01
    cosines = np.full((1, 50, spaces), 0.5 + 0.1 * slack, np.float32)
    cosines[0, 7] = 0.4999 + slack
    lists = Lists(cosines, [1.0] * spaces)
    lists.listed = cosines.astype(np.float64) - 0.1 * slack
    lists.listed[0, 7] = 0.4999
    lists.check(1, slack=slack)


def test_item_that_is_in_one_list_only_is_found() -> None:
    rng = np.random.default_rng(2)
    # 200 are near in the first space and 200 in the second, each far in the other.
    first = np.stack([np.linspace(0.99, 0.6, 200), np.full(200, -1.0)], axis=1)
    second = np.stack([np.full(200, -1.0), np.linspace(0.99, 0.5, 200)], axis=1)
    cosines = rng.permutation(np.concatenate([first, second]))[None].astype(np.float32)
    near = np.flatnonzero(cosines[0, :, 0] > 0.8)
    order = near[np.argsort(cosines[0, near, 0])]
    # The best is behind 90 others of its list, just below the end of the other, and just before the second.
    cosines[0, order[0]] = 0.8, 0.4999
    cosines[0, order[-1]] = 0.99, 0.305
    lists = Lists(cosines, [1.0, 1.0])
    lists.check(1, first=199)
    assert lists.deepest_asked == 199


def test_items_that_are_no_more_take_no_place() -> None:
    cosines = _random(200, 2)
    best = Lists(cosines, [1.0, 1.0]).brute_force(10)[0].rows
    for k in (10, 198):
        Lists(cosines, [1.0, 1.0], gone=best[::2]).check(k)


def test_correlated_lists_need_few_scores() -> None:
    one = _random(20_000, 1, queries=1)
    lists = Lists(np.concatenate([one, one * np.float32(0.9)], axis=2), [1.0, 1.0])
    lists.check(10, first=128)
    assert lists.deepest_asked == 128
    assert lists.scored <= 64


def test_every_item_is_scored_where_lists_may_be_no_longer() -> None:
    lists = Lists(_random(3000, 4), [1.0] * 4)
    lists.check(10, deepest=256)
    assert lists.asked_for_all
    assert lists.deepest_asked <= 256


def test_no_items() -> None:
    Lists(np.zeros((2, 0, 2), np.float32), [1.0, 1.0]).check(5)


@given(st.data())
def test_any_lists(data: st.DataObject) -> None:
    spaces = data.draw(st.integers(1, 3))
    row = st.lists(st.integers(-2, 2).map(float), min_size=spaces, max_size=spaces)
    cosines = np.array([data.draw(st.lists(row, max_size=30))], np.float32).reshape(1, -1, spaces)
    weights = data.draw(
        st.lists(st.sampled_from([-2.0, -0.5, 0.0, 1.0, 3.0]), min_size=spaces, max_size=spaces)
    )
    if any(weights):
        Lists(cosines, weights).check(
            data.draw(st.integers(1, 8)),
            first=data.draw(st.integers(1, 5)),
            deepest=data.draw(st.sampled_from([4, 100])),
        )


def test_rescored_is_the_best_of_what_the_lists_hold() -> None:
    lists = Lists(_random(400, 2), [1.0, 0.5], noise=0.3)
    found = rescored(lists.ranked, lists.exact, lists.weights, queries=3, k=10, depth=50)
    for query, best in enumerate(found):
        held = np.unique(
            np.concatenate([each.rows for s in (0, 1) for each in lists.ranked(s, np.array([query]), 50)])
        )
        scores = weighted_sum(lists.cosines[query, held], lists.weights)
        order = np.lexsort((held, -scores))[:10]
        np.testing.assert_array_equal(best.rows, held[order])
        np.testing.assert_array_equal(best.scores, scores[order])


@pytest.mark.parametrize("dim", [1, 3, 64, 1024])
def test_equal_rows_have_equal_cosines_and_rounding_bounds_float32(dim: int) -> None:
    rng = np.random.default_rng(dim)
    rows = rng.normal(size=(200, dim))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    asked, other = rows[:2], rows[:, ::-1].copy()
    numbers = np.repeat([1, 0, 1], [50, 60, 90])
    found = cosines([asked, other[:2]], numbers, [rows, other])
    for space, (queries, own) in enumerate(((asked, rows), (other[:2], other))):
        true = np.einsum("nd,nd->n", queries[numbers].astype(np.float64), own)
        assert np.abs(found[:, space] - true).max() <= rounding(dim) / 2
    one_by_one = np.zeros(len(rows), np.float32)
    for column in range(dim):
        one_by_one += rows[:, column] * asked[numbers, column]
    assert np.abs(one_by_one - found[:, 0]).max() <= rounding(dim)
    everywhere = np.repeat(rows[5:6], 1001, axis=0)
    assert len(np.unique(cosines([asked], np.zeros(1001, np.int64), [everywhere]))) == 1
