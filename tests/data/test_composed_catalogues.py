"""Composed queries made from a catalogue, and how their sentences are joined."""

from __future__ import annotations

import csv
import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_layouts import draw

import placket.data
from placket.data import (
    Compositions,
    DatasetError,
    Labels,
    Split,
    TableDataset,
    Texts,
    composed,
    joined_captions,
)
from placket.schema import AttributeSchema

ROWS = [  # number, product, colour
    ("1", "p", "red"),
    ("2", "q", "red"),
    ("3", "p", "blue"),
    ("4", "p", "blue"),
    ("5", "", "green"),
    ("6", "q", "red|blue"),
    ("7", "q", ""),
    ("8", "r", "green"),
    ("9", "q", "green"),
]
LAYOUT = """\
table: table.csv
image: "{number}.png"
attributes: {colour: colour}
identity: product
separator: "|"
"""


def write(folder: Path, more: str = "", split: bool = False) -> Path:
    lines = ["number,product,colour,part"]
    lines += [f"{number},{product},{colour},train" for number, product, colour in ROWS]
    if split:
        lines += ["20,s,red,test", "21,s,blue,test", "22,t,red,test"]
        more += "split: part\n"
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    (folder / "layout.yaml").write_text(LAYOUT + more)
    return folder / "layout.yaml"


def sentences(queries: Compositions) -> list[tuple[int, int, str]]:
    ends = zip(queries.reference.tolist(), queries.target.tolist(), strict=True)
    return [(r, t, text) for (r, t), text in zip(ends, queries.captions, strict=True)]


def test_pairs_of_one_product_and_two_colours(tmp_path: Path) -> None:
    split = placket.data.open(write(tmp_path)).split("train")
    queries = composed(split, "colour")
    # Of q, "6" has two colours and "7" none; "5" has no product.
    assert sentences(queries) == [
        (0, 2, "replace red with blue"),
        (0, 3, "replace red with blue"),
        (1, 8, "replace red with green"),
        (2, 0, "replace blue with red"),
        (3, 0, "replace blue with red"),
        (8, 1, "replace green with red"),
    ]
    assert queries.begin.tolist() == list(range(7))
    assert queries.category is None
    assert queries.subset is None
    # Both blue images of p answer alike, and no other two do.
    groups = queries.groups.tolist()
    assert groups[2] == groups[3]
    assert [i for i, group in enumerate(groups) if group < 0] == [4, 5, 6, 7]
    assert len({groups[i] for i in (0, 1, 2, 8)}) == 4


def test_texts_are_patterns_or_functions(tmp_path: Path) -> None:
    split = placket.data.open(write(tmp_path)).split("train")
    asked: list[tuple[str, str]] = []

    def say(reference: str, target: str) -> str:
        asked.append((reference, target))
        return f"in {target}, please"

    assert composed(split, "colour", say).captions[2] == "in green, please"
    assert sorted(asked) == sorted(set(asked))  # once for each pair of values
    assert composed(split, "colour", "{target} {{!}}").captions[0] == "blue {!}"
    wrong = ("{colour}", "{}", "{0}", "{reference", "}", "{target!r}", "{target:9999999}", "{target.x}")
    for text in wrong:
        with pytest.raises(ValueError, match=r"text must be a pattern with \{reference\} and \{target\}"):
            composed(split, "colour", text)
    with pytest.raises(ValueError, match=r"attribute must be .*neckline"):
        composed(split, "neckline")
    plain = dataclasses.replace(split, identities=None)
    with pytest.raises(DatasetError, match="split 'train' must have identities to compose, got none"):
        composed(plain, "colour")


def test_no_pair_gives_no_query(tmp_path: Path) -> None:
    split = placket.data.open(write(tmp_path)).split("train")
    alone = dataclasses.replace(split, identities=np.arange(9))
    queries = composed(alone, "colour")
    assert len(queries) == len(queries.captions) == 0
    assert queries.begin.tolist() == [0]
    assert queries.groups.tolist() == [-1] * 9


def test_any_catalogue_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    n = 300
    labels = [[(0, int(v)) for v in rng.permutation(4)[: rng.integers(0, 3)]] for _ in range(n)]
    split = Split(
        name="train",
        root=Path("."),
        schema=AttributeSchema.of({"colour": list("abcd")}),
        images=n,
        filenames=Texts(),
        labels=Labels.of(labels, (4,)),
        identities=rng.integers(-1, 40, n),
    )
    queries = composed(split, "colour", "{reference}{target}")
    assert split.identities is not None
    expected = []
    for i in range(n):
        for j in range(n):
            if split.identities[i] == split.identities[j] >= 0 and len(labels[i]) == len(labels[j]) == 1:
                a, b = labels[i][0][1], labels[j][0][1]
                if a != b:
                    expected.append((i, j, "abcd"[a] + "abcd"[b]))
    assert len(expected) > 100
    assert sentences(queries) == expected
    targets = sorted({j for _, j, _ in expected})
    kinds = {i: (split.identities[i], labels[i][0]) for i in targets}
    for i in targets:
        alike = [j for j in targets if queries.groups[j] == queries.groups[i]]
        assert alike == [j for j in targets if kinds[j] == kinds[i]]
    assert set(np.flatnonzero(queries.groups >= 0).tolist()) == set(targets)


def test_a_table_says_its_compositions(tmp_path: Path) -> None:
    more = 'compositions: {attribute: colour, text: "{target} instead of {reference}"}\n'
    data = placket.data.open(write(tmp_path, more, split=True))
    queries, test = data.compositions("train"), data.compositions("test")
    assert queries is not None
    assert test is not None
    assert queries.captions[0] == "blue instead of red"
    assert sentences(test) == [(0, 1, "blue instead of red"), (1, 0, "red instead of blue")]
    assert test.groups.tolist()[2] == -1
    assert placket.data.open(write(tmp_path)).compositions("train") is None
    short = placket.data.open(write(tmp_path, "compositions: {attribute: colour}\n")).compositions("train")
    assert short is not None
    assert short.captions[0] == "replace red with blue"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("colour", "compositions must be of type dict, got 'colour'"),
        ("{}", r"compositions must say attribute and may say text, got \{\}"),
        ("{attribute: colour, x: y}", "compositions must say attribute and may say text, got"),
        ("{attribute: fit}", "attribute of compositions must be one of colour, got 'fit'"),
        ("{attribute: 5}", r"names must be text \(put numbers in quotes\), got \[5\]"),
        (
            '{attribute: colour, text: "{x}"}',
            "text of compositions must be a pattern with .* alone, got '{x}'",
        ),
    ],
)
def test_a_bad_entry_is_named(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        placket.data.open(write(tmp_path, f"compositions: {entry}\n"))


def test_compositions_need_identities(tmp_path: Path) -> None:
    path = write(tmp_path, "compositions: {attribute: colour}\n")
    path.write_text(path.read_text().replace("identity: product\n", ""))
    with pytest.raises(DatasetError, match="identity must be given where compositions are, got none"):
        placket.data.open(path)


def test_they_are_packed(tmp_path: Path) -> None:
    data = placket.data.open(write(tmp_path, "compositions: {attribute: colour}\n"))
    draw(data.split("train"))
    store = placket.data.pack(data, tmp_path / "x.store")
    found, whole = store.compositions("train"), data.compositions("train")
    assert found is not None
    assert whole is not None
    assert sentences(found) == sentences(whole)
    assert found.groups.tolist() == whole.groups.tolist()


# Sentences


def queries_of(*each: list[str]) -> Compositions:
    begin = np.cumsum([0, *map(len, each)])
    zeros = np.zeros(len(each), dtype=int)
    return Compositions(zeros, zeros, Texts(text for texts in each for text in texts), begin)


def test_sentences_are_joined_in_order_at_test() -> None:
    queries = queries_of(["is red.", " has long sleeves? "], ["is plain"], ["", "a, "], [" "], [])
    assert joined_captions(queries) == ["is red and has long sleeves", "is plain", "a", "", ""]
    assert joined_captions(queries, epoch=5) == joined_captions(queries)


def test_sentences_are_joined_in_four_ways_in_training() -> None:
    queries = queries_of(*[["A", "B"]] * 1000)
    found = Counter(text for epoch in range(4) for text in joined_captions(queries, seed=1, epoch=epoch))
    assert set(found) == {"A and B", "B and A", "A", "B"}
    # Five standard deviations of a binomial of 4,000.
    assert all(abs(count - 1000) < 5 * (4000 * 3 / 16) ** 0.5 for count in found.values())
    assert joined_captions(queries, seed=1, epoch=2) == joined_captions(queries, seed=1, epoch=2)
    assert joined_captions(queries, seed=1, epoch=2) != joined_captions(queries, seed=1, epoch=3)
    assert joined_captions(queries, seed=2, epoch=2) != joined_captions(queries, seed=1, epoch=2)
    # A query's text depends on its place alone, not on those after it.
    few = queries_of(*[["A", "B"]] * 10)
    assert joined_captions(few, seed=1, epoch=2) == joined_captions(queries, seed=1, epoch=2)[:10]


def test_three_sentences_come_in_any_order_or_alone() -> None:
    queries = queries_of(*[["A", "B", "C"]] * 6000, ["D"], [])
    *found, one, none = joined_captions(queries, seed=0, epoch=0)
    assert (one, none) == ("D", "")
    counts = Counter(found)
    assert len(counts) == 9
    for text, count in counts.items():
        share = 1 / 6 if len(text) == 1 else 1 / 12
        assert abs(count - 6000 * share) < 5 * (6000 * share * (1 - share)) ** 0.5


# H&M


@pytest.mark.data
def test_hm_gives_the_pairs_that_its_table_has(photographs: Path, tmp_path: Path) -> None:
    """Every ordered pair of two articles of one product code whose colours differ."""
    layout = tmp_path / "hm.yaml"
    layout.write_text(
        f"root: {photographs.resolve() / 'hm'}\n"
        "table: articles.csv\n"
        "image: images/{article_id:.3}/{article_id}.jpg\n"
        "attributes: {colour: colour_group_name}\n"
        "split: split\n"
        "identity: product_code\n"
        "compositions: {attribute: colour}\n"
    )
    data = placket.data.open(layout)
    assert isinstance(data, TableDataset)
    products: dict[str, dict[str, list[tuple[str, str]]]] = {}
    with (photographs / "hm/articles.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            product = products.setdefault(row["split"], {}).setdefault(row["product_code"], [])
            product.append((row["article_id"], row["colour_group_name"]))
    counts: dict[str, Any] = {}
    for name in data.splits:
        split, queries = data.split(name), data.compositions(name)
        assert queries is not None
        expected = Counter(
            (f"images/{a[:3]}/{a}.jpg", f"images/{b[:3]}/{b}.jpg", f"replace {x} with {y}")
            for articles in products[name].values()
            for a, x in articles
            for b, y in articles
            if x != y
        )
        found = Counter((split.filenames[r], split.filenames[t], text) for r, t, text in sentences(queries))
        assert found == expected
        counts[name] = len(queries)
    assert counts == {"train": 13344, "valid": 1776, "test": 4090}
