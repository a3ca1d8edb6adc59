from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placket import _C
from placket.data import Labels

Pairs = list[tuple[int, int]]


def labels_of(rows: list[Pairs], values: tuple[int, ...]) -> Labels:
    return Labels.of(rows, values)


def can_serve(rows: list[Pairs], values: tuple[int, ...], exclude_shared: bool) -> bool:
    """Whether any attribute has two images of one value, and an image of another that does not share it."""
    for a, count in enumerate(values):
        images = [{i for i, row in enumerate(rows) if (a, v) in row} for v in range(count)]
        for v in range(count):
            others = [images[w] - (images[v] if exclude_shared else set()) for w in range(count) if w != v]
            if len(images[v]) >= 2 and any(others):
                return True
    return False


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Pairs], tuple[int, ...]]:
    values = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    pairs = [(a, v) for a, count in enumerate(values) for v in range(count)]
    row = st.lists(st.sampled_from(pairs), max_size=4, unique=True)
    return draw(st.lists(row, min_size=1, max_size=12)), values


@given(
    table=tables(),
    by_value=st.booleans(),
    exclude_shared=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 50),
)
@settings(deadline=None, max_examples=300)
def test_triplets_are_what_they_must_be(
    table: tuple[list[Pairs], tuple[int, ...]], by_value: bool, exclude_shared: bool, seed: int, step: int
) -> None:
    rows, values = table
    options: dict[str, Any] = {
        "seed": seed,
        "batch": 12,
        "triplets": 40,
        "negative_by_value": by_value,
        "exclude_shared": exclude_shared,
    }
    native = labels_of(rows, values).to_native()
    if not can_serve(rows, values, exclude_shared):
        with pytest.raises(ValueError, match="labels must have an attribute with two images under one value"):
            _C.triplet_source(native, **options)
        return
    source = _C.triplet_source(native, **options)
    assert source.steps_per_epoch == 3
    plan = source.plan(step)
    assert plan.epoch == step // 3
    anchors, positives, negatives = plan.images.reshape(3, 12).tolist()
    (attributes, *same_attribute), (wanted, same_value, other) = (
        column.reshape(3, 12).tolist() for column in (plan.attributes, plan.values)
    )
    assert same_attribute == [attributes, attributes]
    assert wanted == same_value
    drawn = zip(anchors, positives, negatives, attributes, wanted, other, strict=True)
    for anchor, positive, negative, a, v, w in drawn:
        assert anchor != positive
        assert v != w
        assert (a, v) in rows[anchor]
        assert (a, v) in rows[positive]
        assert (a, w) in rows[negative]
        assert not exclude_shared or (a, v) not in rows[negative]

    again = _C.triplet_source(native, **options).plan(step)
    assert again.images.tolist() == plan.images.tolist()
    parts = [_C.triplet_source(native, **options, rank=rank, world_size=3).plan(step) for rank in range(3)]
    for column in ("images", "attributes", "values", "positions"):
        joined = np.concatenate([getattr(part, column).reshape(3, 4) for part in parts], axis=1)
        np.testing.assert_array_equal(joined.ravel(), getattr(plan, column))


# One attribute; 6, 3 and 1 images of values 0, 1, 2, none of value 3; image 6 carries values 0 and 1.
UNEVEN: list[Pairs] = [[(0, 0)]] * 5 + [[(0, 1)]] * 2 + [[(0, 0), (0, 1)]] + [[(0, 2)]]
# Value of the anchor, 0 or 1 with equal chance, then each negative image's chance.
SHARED = 7


@pytest.mark.parametrize("by_value", [True, False])
@pytest.mark.parametrize("exclude_shared", [True, False])
def test_negatives_are_distributed_as_the_references_draw_them(by_value: bool, exclude_shared: bool) -> None:
    n = 100_000
    source = _C.triplet_source(
        labels_of(UNEVEN, (4,)).to_native(),
        seed=3,
        batch=n,
        triplets=n,
        negative_by_value=by_value,
        exclude_shared=exclude_shared,
    )
    plan = source.plan(0)
    anchors, positives, negatives = plan.images.reshape(3, n)
    value = plan.values.reshape(3, n)[0]
    images = {0: [0, 1, 2, 3, 4, SHARED], 1: [5, 6, SHARED], 2: [8]}

    def check(drawn: np.ndarray, chances: dict[int, float]) -> None:
        """Each count within five standard deviations of a binomial draw."""
        counts = np.bincount(drawn, minlength=9)
        for image in range(9):
            p = chances.get(image, 0.0)
            assert abs(counts[image] - p * len(drawn)) <= 5 * np.sqrt(len(drawn) * p * (1 - p)) + 1e-9

    assert abs((value == 0).mean() - 0.5) < 5 * np.sqrt(0.25 / n)
    for v in (0, 1):
        own = value == v
        check(anchors[own], {i: 1 / len(images[v]) for i in images[v]})
        check(positives[own], {i: 1 / len(images[v]) for i in images[v]})
        listed = {w: [i for i in images[w] if not (exclude_shared and i == SHARED)] for w in images if w != v}
        every = [i for w in listed for i in listed[w]]
        if by_value:
            chances = {i: 1 / len(listed) / len(listed[w]) for w in listed for i in listed[w]}
        else:
            chances = {i: every.count(i) / len(every) for i in every}
        check(negatives[own], chances)


def test_attributes_are_uniform_and_those_without_a_pair_are_left_out() -> None:
    rows: list[Pairs] = [[(0, 0), (1, i % 2), (2, i % 2)] for i in range(8)]  # attribute 0: one value
    n = 40_000
    source = _C.triplet_source(labels_of(rows, (2, 2, 2)).to_native(), batch=n, triplets=n)
    counts = np.bincount(source.plan(0).attributes[:n], minlength=3)
    assert counts[0] == 0
    assert abs(counts[1] - n / 2) < 5 * np.sqrt(n / 4)


def test_epochs_and_seeds_differ() -> None:
    native = labels_of(UNEVEN, (4,)).to_native()
    plans = [
        _C.triplet_source(native, seed=seed, batch=64, triplets=64).plan(step).images.tolist()
        for seed, step in [(0, 0), (0, 1), (1, 0)]
    ]
    assert len({tuple(plan) for plan in plans}) == 3


@given(
    images=st.integers(1, 60),
    batch=st.integers(1, 12),
    world_size=st.integers(1, 3),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    epoch=st.integers(0, 3),
)
@settings(deadline=None, max_examples=200)
def test_every_image_once_an_epoch_over_all_ranks(
    images: int, batch: int, world_size: int, shuffle: bool, drop_last: bool, epoch: int
) -> None:
    batch *= world_size
    options: dict[str, Any] = {"seed": 5, "batch": batch, "shuffle": shuffle, "drop_last": drop_last}
    if drop_last and batch > images:
        with pytest.raises(ValueError, match=f"image sampler: batch must be at most {images}"):
            _C.image_source(images, **options)
        return
    whole = _C.image_source(images, **options)
    ranks = [_C.image_source(images, **options, rank=r, world_size=world_size) for r in range(world_size)]
    steps = whole.steps_per_epoch
    assert steps == (images // batch if drop_last else -(-images // batch))
    seen: list[int] = []
    for step in range(epoch * steps, (epoch + 1) * steps):
        plan = whole.plan(step)
        assert plan.epoch == epoch
        assert [i for rank in ranks for i in rank.plan(step).images.tolist()] == plan.images.tolist()
        assert [i for rank in ranks for i in rank.plan(step).positions.tolist()] == plan.positions.tolist()
        seen += plan.images.tolist()
    assert len(seen) == (steps * batch if drop_last else images)
    assert len(set(seen)) == len(seen)
    if not shuffle:
        assert seen == list(range(len(seen)))


def test_shuffling_is_uniform() -> None:
    """The place of image 0 in 4,000 epochs of eight: each within five standard deviations of 500."""
    source = _C.image_source(8, batch=8)
    places = [int(np.flatnonzero(source.plan(step).images == 0)[0]) for step in range(4000)]
    assert (abs(np.bincount(places, minlength=8) - 500) < 5 * np.sqrt(4000 / 8 * 7 / 8)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "batch must be a positive multiple of world_size 1, got 0"),
        ({"batch": 5, "world_size": 2}, "batch must be a positive multiple of world_size 2, got 5"),
        ({"rank": 2, "world_size": 2}, r"rank must be in \[0, 2\), got 2"),
        ({"world_size": 0}, "world_size must be positive, got 0"),
        ({"triplets": 8}, "triplets must be at least one batch of 16, got 8"),
        ({"triplets": 2**32}, "triplets must be at most 1431655765, got 4294967296"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"triplet sampler: {message}"):
        _C.triplet_source(labels_of(UNEVEN, (4,)).to_native(), **arguments)


@pytest.mark.parametrize(
    ("begin", "attribute", "value", "message"),
    [
        ([0, 2], [0], [0], "labels.begin must go from 0 to the number of labels 1"),
        ([0, 2, 1, 2], [0, 0], [0, 1], "labels.begin must not fall, got 2 before 1 at image 1"),
        ([0, 1], [1], [0], r"attribute of label 0 must be in \[0, 1\), got 1"),
        ([0, 1], [0], [4], r"value of label 0 \(attribute 0\) must be in \[0, 4\), got 4"),
        ([0, 1], [0], [0, 1], "labels must have as many values as attributes, got 2 and 1"),
    ],
)
def test_tables_that_do_not_fit_together(
    begin: list[int], attribute: list[int], value: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=f"LabelTable: {message}"):
        _C.LabelTable(begin, attribute, value, [4])


def test_a_value_with_one_image_gives_two_views_of_it() -> None:
    native = labels_of([[(0, 0)], [(0, 1)]], (2,)).to_native()
    with pytest.raises(ValueError, match="two images under one value and an image under another"):
        _C.triplet_source(native, batch=8, triplets=8)
    plan = _C.triplet_source(native, batch=8, triplets=8, single_views=True).plan(0)
    anchors, positives, negatives = plan.images.reshape(3, 8)
    np.testing.assert_array_equal(anchors, positives)
    np.testing.assert_array_equal(anchors, 1 - negatives)
    assert len(set(plan.positions.tolist())) == 24  # which augmentation is keyed by


@given(
    table=tables(),
    classes=st.integers(1, 4),
    k=st.integers(1, 5),
    least=st.integers(1, 3),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 50),
)
@settings(deadline=None, max_examples=300)
def test_classes_are_what_they_must_be(
    table: tuple[list[Pairs], tuple[int, ...]], classes: int, k: int, least: int, seed: int, step: int
) -> None:
    rows, values = table
    options = {"seed": seed, "classes": classes, "images_of_class": k, "least_images": least, "steps": 7}
    native = labels_of(rows, values).to_native()
    images = {
        (a, v): {i for i, row in enumerate(rows) if (a, v) in row}
        for a, n in enumerate(values)
        for v in range(n)
    }
    enough = [sum(len(images[a, v]) >= least for v in range(n)) for a, n in enumerate(values)]
    if max(enough) < classes:
        with pytest.raises(ValueError, match=f"an attribute with {classes} values of {least} images or more"):
            _C.class_source(native, **options)
        return
    source = _C.class_source(native, **options)
    assert source.steps_per_epoch == 7
    plan = source.plan(step)
    assert plan.epoch == step // 7
    assert plan.positions.tolist() == [step % 7 * classes * k + i for i in range(classes * k)]
    (attribute,) = set(plan.attributes.tolist())
    assert enough[attribute] >= classes
    drawn = plan.values.reshape(classes, k)
    assert len(set(drawn[:, 0].tolist())) == classes
    for value, group in zip(drawn, plan.images.reshape(classes, k), strict=True):
        known = images[attribute, value[0]]
        assert set(value.tolist()) == {value[0]}
        assert len(known) >= least
        assert set(group.tolist()) <= known
        counts = np.unique(group, return_counts=True)[1]
        assert len(counts) == min(k, len(known))
        assert counts.max() - counts.min() <= 1

    parts = [
        _C.class_source(native, **options, rank=rank, world_size=classes).plan(step)
        for rank in range(classes)
    ]
    for column in ("images", "attributes", "values", "positions"):
        joined = np.concatenate([getattr(part, column) for part in parts])
        np.testing.assert_array_equal(joined, getattr(plan, column))


@given(
    table=tables(),
    balance=st.integers(0, 2),
    classes=st.integers(1, 3),
    k=st.integers(1, 6),
    least=st.integers(1, 3),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 50),
)
@settings(deadline=None, max_examples=300)
def test_values_share_the_images_of_a_class(
    table: tuple[list[Pairs], tuple[int, ...]],
    balance: int,
    classes: int,
    k: int,
    least: int,
    seed: int,
    step: int,
) -> None:
    rows, values = table
    balance = min(balance, len(values) - 1)
    # The first value of the attribute, -1 without one.
    kind = [next((v for a, v in row if a == balance), -1) for row in rows]
    images = {
        (a, v): [i for i, row in enumerate(rows) if (a, v) in row]
        for a, n in enumerate(values)
        for v in range(n)
        if a != balance
    }
    enough = {a for a, _ in images if sum(len(images[a, v]) >= least for v in range(values[a])) >= classes}
    native = labels_of(rows, values).to_native()
    options = {"seed": seed, "classes": classes, "images_of_class": k, "least_images": least, "steps": 7}
    if k % len(set(kind)):
        with pytest.raises(
            ValueError, match=f"multiple of the {len(set(kind))} values of attribute {balance}"
        ):
            _C.class_source(native, **options, balance=balance)
        return
    if not enough:
        with pytest.raises(ValueError, match=f"an attribute with {classes} values of {least} images or more"):
            _C.class_source(native, **options, balance=balance)
        return
    plan = _C.class_source(native, **options, balance=balance).plan(step)
    assert plan.positions.tolist() == [step % 7 * classes * k + i for i in range(classes * k)]
    (attribute,) = set(plan.attributes.tolist())
    assert attribute in enough
    drawn = plan.values.reshape(classes, k)
    assert len(set(drawn[:, 0].tolist())) == classes
    for value, group in zip(drawn, plan.images.reshape(classes, k).tolist(), strict=True):
        assert set(value.tolist()) == {value[0]}
        known = images[attribute, int(value[0])]
        kinds = sorted({kind[i] for i in known})
        found = [kind[i] for i in group]
        assert found == sorted(found)
        numbers = [found.count(each) for each in kinds]
        assert sum(numbers) == k
        assert max(numbers) - min(numbers) <= 1
        for each, number in zip(kinds, numbers, strict=True):
            there = {i for i in known if kind[i] == each}
            counts = np.unique([i for i in group if kind[i] == each], return_counts=True)
            assert set(counts[0].tolist()) <= there
            assert len(counts[0]) == min(number, len(there))
            assert counts[1].max() - counts[1].min() <= 1

    parts = [
        _C.class_source(native, **options, balance=balance, rank=rank, world_size=classes).plan(step)
        for rank in range(classes)
    ]
    for column in ("images", "attributes", "values", "positions"):
        joined = np.concatenate([getattr(part, column) for part in parts])
        np.testing.assert_array_equal(joined, getattr(plan, column))


def test_classes_and_their_images_are_uniform() -> None:
    native = labels_of(UNEVEN, (4,)).to_native()
    source = _C.class_source(native, seed=5, classes=1, images_of_class=2, least_images=1, steps=30_000)
    plans = [source.plan(step) for step in range(30_000)]
    values = np.array([plan.values[0] for plan in plans])
    images = np.concatenate([plan.images for plan in plans if plan.values[0] == 0])
    # Three values and six images: five standard deviations of a binomial count.
    assert np.abs(np.bincount(values) - 10_000).max() < 5 * 82
    share = np.bincount(images, minlength=9)[[0, 1, 2, 3, 4, 7]] / len(images)
    assert np.abs(share - 1 / 6).max() < 5 * (5 / 36 / len(images)) ** 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 0}, "classes and images_of_class must be positive, got 0 and 4"),
        ({"classes": 2, "attribute": 1}, r"attribute must be -1 or in \[0, 1\), got 1"),
        ({"classes": 3}, "an attribute with 3 values of 2 images or more, got attribute 0 with 2"),
        ({"classes": 2, "world_size": 3}, "batch must be a positive multiple of world_size 3, got 2"),
        ({"balance": 1}, r"balance must be -1 or in \[0, 1\) and another attribute .* got 1"),
        ({"attribute": 0, "balance": 0}, r"balance must be .* another attribute than the classes', got 0"),
        ({"balance": -2}, r"balance must be -1 or in \[0, 1\) .*, got -2"),
    ],
)
def test_class_arguments_out_of_range(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"class sampler: .*{message}"):
        _C.class_source(labels_of(UNEVEN, (4,)).to_native(), **arguments)


@pytest.mark.parametrize("kind", ["images", "triplets", "classes"])
def test_copies_lie_next_to_each_other_at_places_of_their_own(kind: str):
    labels = labels_of([[(0, i % 3)] for i in range(24)], (3,)).to_native()

    def source(rank: int = 0, world_size: int = 1) -> _C.BatchSource:
        shared: Any = {"seed": 5, "rank": rank, "world_size": world_size}
        if kind == "images":
            return _C.image_source(24, batch=4, **shared)
        if kind == "triplets":
            return _C.triplet_source(labels, batch=4, triplets=20, **shared)
        return _C.class_source(labels, classes=2, images_of_class=2, **shared)

    copied = _C.copied_source(source(), 3)
    assert copied.steps_per_epoch == source().steps_per_epoch
    positions = []
    for step in range(copied.steps_per_epoch):
        plan, single = copied.plan(step), source().plan(step)
        for name in ("images", "attributes", "values"):
            assert np.array_equal(getattr(plan, name), np.repeat(getattr(single, name), 3))
        assert np.array_equal(plan.positions // 3, np.repeat(single.positions, 3))
        positions += plan.positions.tolist()
        halves = [_C.copied_source(source(rank, 2), 3).plan(step).positions.tolist() for rank in (0, 1)]
        assert sorted(plan.positions.tolist()) == sorted(halves[0] + halves[1])
    assert len(set(positions)) == len(positions)


def test_one_copy_is_the_source_itself():
    source = _C.image_source(9, batch=3)
    assert _C.copied_source(source, 1) is source
    with pytest.raises(ValueError, match="sampler: copies must be at least 1, got 0"):
        _C.copied_source(source, 0)
