"""Fashion200k, and TIRG's composed queries on it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from small_layouts import draw, write

import placket.data
from fuzz.published_layouts import FASHION_200K
from placket.data import Compositions, DatasetError, Fashion200kDataset, Loader, Preprocess

QUERIES = "test_queries.txt"
DRESSES = "labels/dress_test_detect_all.txt"
WITHOUT_QUERIES = {name: text for name, text in FASHION_200K.items() if name != QUERIES}


def triples(compositions: Compositions) -> list[tuple[int, int, str]]:
    ends = zip(compositions.reference.tolist(), compositions.target.tolist(), strict=True)
    return [(*pair, text) for pair, text in zip(ends, compositions.captions, strict=True)]


def test_it_is_read_as_published(tmp_path: Path) -> None:
    data = placket.data.open(write(tmp_path, FASHION_200K))
    assert isinstance(data, Fashion200kDataset)
    assert data.splits == ("train", "test")
    assert data.schema.to_dict() == {"attributes": [{"name": "category", "values": ["dress", "top"]}]}
    train, test = data.split("train"), data.split("test")
    assert (len(train), len(test), train.boxes) == (6, 4, None)
    assert train.filenames[:2] == ["women/dresses/day/11/11_0.jpeg", "women/dresses/day/11/11_1.jpeg"]
    assert [train.labels[i] for i in (0, 5)] == [[(0, 0)], [(0, 1)]]
    assert train.identities.tolist() == [0, 0, 1, 2, 3, 4]
    assert test.identities.tolist() == [5, 5, 6, 7]
    assert data.identities == ("11", "12", "13", "14", "21", "31", "32", "41")
    assert data.captions("train")[3:] == ["black   silk dress", "a.l.c. long gown & belt", "white lace dress"]
    assert len(test.queries) + len(test.candidates) == 4
    assert train.line(0) is None
    draw(train)
    (batch,) = Loader(train, batch=6, shuffle=False, preprocess=Preprocess(size=16))
    assert batch.labels.tolist() == [[0]] * 5 + [[1]]


def test_numbers_of_products_depend_on_no_order(tmp_path: Path) -> None:
    write(tmp_path, FASHION_200K)
    first, second = placket.data.open(tmp_path), placket.data.open(tmp_path)
    test = first.split("test")
    second.split("train")
    assert test.identities.tolist() == second.split("test").identities.tolist()


def test_test_queries_are_those_of_the_list(tmp_path: Path) -> None:
    data = placket.data.open(write(tmp_path, FASHION_200K))
    assert triples(data.compositions("test")) == [
        (1, 2, "replace blue with green"),
        (2, 0, "replace green with blue"),
    ]


def test_words_of_the_list_are_found_by_the_published_rule(tmp_path: Path) -> None:
    """The first word that the other has not; the last where it has all of them."""
    dresses = FASHION_200K[DRESSES].replace("green midi dress", "midi dress midi blue")
    data = placket.data.open(write(tmp_path, {**FASHION_200K, DRESSES: dresses}))
    assert data.compositions("test").captions == ["replace dress with blue", "replace blue with dress"]


def test_drawn_pairs_differ_in_one_word(tmp_path: Path) -> None:
    data = placket.data.open(write(tmp_path, WITHOUT_QUERIES))
    assert isinstance(data, Fashion200kDataset)
    captions = data.captions("train")
    found: Counter[tuple[int, int, str]] = Counter()
    for epoch in range(400):
        drawn = triples(data.draw_compositions("train", epoch))
        assert [reference for reference, _, _ in drawn] == [0, 1, 2, 3, 5]  # nothing is like 4
        found.update(drawn)
    for reference, target, text in found:
        match = re.fullmatch("replace (.+) with (.+)", text)
        assert match is not None
        replaced = [match[2] if word == match[1] else word for word in captions[reference].split()]
        assert replaced == captions[target].split() != captions[reference].split()
    # Image 0: its colour goes one time in two, to red or white; its cloth the other time, to silk.
    assert {key[1:] for key in found if key[0] == 0} == {
        (2, "replace black with red"),
        (5, "replace black with white"),
        (3, "replace lace with silk"),
    }
    assert 160 < found[0, 3, "replace lace with silk"] < 240  # four deviations of 200
    assert 65 < found[0, 2, "replace black with red"] < 135  # of 100
    # Image 2: only its colour goes, to white or to black, which two images have.
    assert 160 < found[2, 5, "replace red with white"] < 240
    assert 65 < found[2, 0, "replace red with black"] < 135


def test_drawing_is_repeatable(tmp_path: Path) -> None:
    data = placket.data.open(write(tmp_path, WITHOUT_QUERIES))
    assert isinstance(data, Fashion200kDataset)
    for split in data.splits:
        assert triples(data.compositions(split)) == triples(data.draw_compositions(split))
    again = placket.data.open(tmp_path)
    assert isinstance(again, Fashion200kDataset)
    epochs = [triples(data.draw_compositions("train", epoch)) for epoch in range(8)]
    assert [triples(again.draw_compositions("train", epoch)) for epoch in range(8)] == epochs
    assert len({*map(tuple, epochs)}) > 1


def test_captions_and_compositions_are_packed(tmp_path: Path) -> None:
    data = placket.data.open(write(tmp_path / "set", FASHION_200K))
    for name in data.splits:
        draw(data.split(name))
    store = placket.data.pack(data, tmp_path / "set.placket")
    for name in data.splits:
        assert triples(store.compositions(name)) == triples(data.compositions(name))
        assert store.captions(name) == data.captions(name)


def test_a_product_in_two_splits_is_told(tmp_path: Path) -> None:
    dresses = FASHION_200K[DRESSES].replace("day/32/32_0", "day/11/11_7")
    data = placket.data.open(write(tmp_path, {**WITHOUT_QUERIES, DRESSES: dresses}))
    _, problems = data.inspect("test")
    (problem,) = (p for p in problems if p.kind == "duplicate")
    assert str(problem) == (
        f"{tmp_path}/{DRESSES}:3: product 11 must be in one split, got it in dress_train_detect_all.txt too"
    )
    assert data.split("test").identities.tolist() == [5, 5, 0, 6]


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (DRESSES, "\t0.986\tgreen", "\tgreen", "3: line must be path, score and description with tabs"),
        (DRESSES, "0.986\tgreen", "high\tgreen", "3: line must be path, score and description with tabs"),
        (DRESSES, "women/dresses/day/32", "../32", "3: path must lie inside"),
        (
            DRESSES,
            "day/31/31_0",
            "day/11/11_0",
            r"1: image .*11_0\.jpeg must be in one split, got it in dress_tr",
        ),
        (QUERIES, "31_1.jpeg women", "31_1.jpeg a women", "1: line must be the paths of reference and targ"),
        (QUERIES, "31_1", "31_9", r"1: reference and target must be images of the split, got 'women/.*31_9"),
        (DRESSES, "green midi dress", " ", "1: reference and target must have descriptions, got none"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    assert old in FASHION_200K[name]
    data = placket.data.open(write(tmp_path, {**FASHION_200K, name: FASHION_200K[name].replace(old, new, 1)}))
    place = QUERIES if "descriptions" in message else name
    with pytest.raises(DatasetError, match=rf"^{tmp_path}/{place}:{message}"):
        (data.split("test"), data.compositions("test"))
    assert len(data.split("train")) == 6


def test_an_image_listed_twice_counts_once(tmp_path: Path) -> None:
    tops = FASHION_200K[DRESSES].splitlines()[0] + "\n"
    data = placket.data.open(write(tmp_path, {**FASHION_200K, "labels/top_test_detect_all.txt": tops}))
    assert len(data.split("test")) == 3
    assert (
        data.split("test").warnings[0].endswith("must be there once, got it in dress_test_detect_all.txt too")
    )


def test_an_empty_list_is_told(tmp_path: Path) -> None:
    data = placket.data.open(write(tmp_path, {"labels/dress_train_detect_all.txt": ""}))
    with pytest.raises(DatasetError, match="split 'train' must have at least one image, got none"):
        data.split("train")
    with pytest.raises(DatasetError, match=r"data set must hold labels/\{category\}_\{train,test\}_detect"):
        Fashion200kDataset(tmp_path / "labels")
