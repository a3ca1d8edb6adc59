"""Columns: strings and labels of many images in arrays."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placket import _C
from placket.data import DatasetError, Labels, Split, Texts
from placket.data.columns import Columns, smallest
from placket.schema import AttributeSchema

# What file names can hold: any text, and bytes that are no UTF-8, which Python writes as lone surrogates.
NAMES = st.lists(
    st.text(st.characters(codec="utf-8") | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF))
)


@given(NAMES)
def test_texts_are_the_strings(names: list[str]) -> None:
    names = [name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") for name in names]
    texts = Texts(names)
    assert list(texts) == names
    assert texts == names
    assert texts[1:-1] == names[1:-1]
    assert pickle.loads(pickle.dumps(texts)) == texts
    assert Texts.of(_C.TextColumn.of(texts.native.bytes, texts.native.ends)) == texts
    if names:
        assert texts[-1] == names[-1]
        assert texts != [*names[:-1], names[-1] + "x"]
    with pytest.raises(IndexError):
        texts[len(names)]


def test_blocks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="ends must rise to the number of bytes 3"):
        _C.TextColumn.of(np.frombuffer(b"abc", np.uint8), [1, 2])
    with pytest.raises(ValueError, match="ends must rise to the number of bytes 3"):
        _C.TextColumn.of(np.frombuffer(b"abc", np.uint8), [2, 1, 3])


def test_labels_take_the_smallest_type() -> None:
    labels = Labels.of([[(0, 3), (1, 300)], [], [(1, 2)]], (4, 301))
    assert [a.dtype for a in (labels.begin, labels.attribute, labels.value)] == [np.int8, np.int8, np.int16]
    assert [labels[i] for i in range(3)] == [[(0, 3), (1, 300)], [], [(1, 2)]]
    assert labels.images().tolist() == [0, 0, 2]
    assert labels.counts(1)[[2, 300]].tolist() == [1, 1]
    assert len(labels.to_native()) == 3


@pytest.mark.parametrize(
    ("extremes", "kind"),
    [((-128, 127), np.int8), ((0, 128), np.int16), ((-129, 0), np.int16), ((0, 1 << 31), np.int64)],
)
def test_smallest_type(extremes: tuple[int, int], kind: type) -> None:
    assert smallest(np.array(extremes, dtype=np.int64)).dtype == kind
    assert smallest(np.array(extremes, dtype=np.int64)).tolist() == list(extremes)


def test_renumbered_labels_drop_what_has_no_number() -> None:
    labels = Labels.of([[(0, 0), (1, 1)], [(0, 1)], [(0, 2), (1, 0)]], (3, 2))
    found = labels.renumber([np.array([1, -1, 0]), np.array([0, -1])], (2, 1))
    assert [found[i] for i in range(3)] == [[(0, 1)], [], [(0, 0), (1, 0)]]
    assert found.values == (2, 1)


def test_products_and_domains_are_attributes_behind_the_others() -> None:
    split = Split(
        name="test",
        root=Path("/set"),
        schema=AttributeSchema.of({"colour": ["red", "blue"], "kind": ["coat"]}),
        images=5,
        filenames=Texts(map(str, range(5))),
        labels=Labels.of([[(0, 1)], [], [(1, 0), (0, 0)], [(0, 0), (0, 1)], []], (2, 1)),
        identities=np.array([900, -1, 7, 900, 40], dtype=np.int32),
        domains=np.array([0, 1, 1, 1, 0], dtype=np.int8),
    )
    found = split.with_products()
    assert found.values == (2, 1, 3, 2)
    assert [found[i] for i in range(5)] == [
        [(0, 1), (2, 2), (3, 0)],
        [(3, 1)],
        [(1, 0), (0, 0), (2, 0), (3, 1)],
        [(0, 0), (0, 1), (2, 2), (3, 1)],
        [(2, 1), (3, 0)],
    ]
    assert found.to_native() is not None  # which checks every label
    one_kind = dataclasses.replace(split, domains=None).with_products()
    assert one_kind.values == (2, 1, 3, 1)
    assert one_kind.counts(3).tolist() == [5]
    unknown = dataclasses.replace(split, identities=np.full(5, -1)).with_products()
    assert unknown.values == (2, 1, 0, 2)
    with pytest.raises(DatasetError, match="/set: split 'test' must have identities, got none"):
        dataclasses.replace(split, identities=None).with_products()


def test_a_million_images_take_less_than_100_megabytes() -> None:
    """Measured on a hundredth of them: every column grows by the image."""
    columns = Columns()
    for i in range(10_000):
        name = f"img/WOMEN/Dresses/id_{i:08}/01_1_front.jpg"
        columns.add(name, [(a, i * a % 200) for a in range(6)], line=i, identity=i // 4, box=[0, 0, 999, 999])
    labels = columns.labels((200,) * 6)
    arrays = [labels.attribute, labels.value, columns.lines, columns.identities, columns.boxes]
    arrays += [columns.filenames.native.bytes, columns.filenames.native.ends]
    begin = 8  # int32 for a million images, and what rounding may add
    assert sum(array.nbytes for array in arrays) / 10_000 + begin < 100
