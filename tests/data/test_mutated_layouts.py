"""Whatever is wrong with their lists, the readers of layouts say it and raise nothing else."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from small_layouts import (
    ATTRIBUTE_PREDICTION,
    CIRR,
    CONSUMER_TO_SHOP,
    FASHION_IQ,
    IN_SHOP,
    OML,
    STREET2SHOP,
    write,
)

import placket.data
from placket.data import DatasetError

LAYOUTS = {
    "attribute-prediction": ATTRIBUTE_PREDICTION,
    "in-shop": IN_SHOP,
    "consumer-to-shop": CONSUMER_TO_SHOP,
    "fashion-iq": FASHION_IQ,
    "cirr": CIRR,
    "street2shop": STREET2SHOP,
    "oml": OML,
}
WORDS = [
    "",
    " ",
    "0",
    "-1",
    "7",
    "99999999999",
    "5" * 5000,
    "1.5",
    "x",
    "../x",
    "/x",
    "\0",
    "\ud800",
    "²",
    "train",
]
WORDS += ["query", "null", "true", "[]", "{}", '""', '"', ",", "\n", "\\ud800", "[" * 50_000, '"B05"', "nan"]


def damage(text: str, choice: random.Random) -> str:
    kind = choice.randrange(5)
    ends = [0, *(i for i, letter in enumerate(text) if letter in ' \n,:{}[]"'), len(text)]
    begin, end = sorted(choice.choices(ends, k=2))
    if kind == 0:
        return text[:begin]
    if kind == 1:
        return text[:begin] + text[end:]
    if kind == 2:
        return text[:end] + text[begin:]
    after = min(i for i in ends if i > begin) if begin < len(text) else begin
    return text[:begin] + choice.choice(WORDS) + text[after:]


def read_all(place: Path) -> bool:
    """Read all of a data set and return whether it is good; errors must be told by reading and inspecting."""
    try:
        data = placket.data.open(place)
    except DatasetError:
        return False
    good = True
    for name in data.splits:
        _, problems = data.inspect(name)
        refused = 0
        for read in (data.split, data.regions, data.captions, data.compositions):
            try:
                read(name)
            except DatasetError:
                refused += 1
        assert any(problem.severity == "error" for problem in problems) == (refused > 0), problems
        assert str(problems)
        if refused:
            good = False
            continue
        split, queries = data.split(name), data.compositions(name)
        assert len(split.labels) == len(split.filenames) == len(split) > 0
        assert len(list(split.records)) == len(split)
        split.labels.to_native()
        split.image_list()
        for column in (split.boxes, split.identities, split.domains, split.sequences):
            assert column is None or len(column) == len(split)
        for images in (split.query_images, split.gallery_images, split.queries[:, 0], split.candidates[:, 0]):
            assert images is None or ((images >= 0) & (images < len(split))).all()
        assert split.boxes is None or (split.boxes[:, :2] < split.boxes[:, 2:]).all()
        if queries is not None:
            assert ((queries.reference >= 0) & (queries.reference < len(split))).all()
            assert ((queries.target >= -1) & (queries.target < len(split))).all()
            assert queries.begin[-1] == len(queries.captions)
    return good


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mutated_lists_are_read_or_refused(tmp_path: Path, layout: str) -> None:
    lists = LAYOUTS[layout]
    assert read_all(write(tmp_path, lists))
    refused = 0
    for number in range(200):
        choice = random.Random(f"{layout} {number}")
        name = choice.choice(list(lists))
        text = damage(lists[name], choice)
        if choice.randrange(3) == 0:
            text = damage(text, choice)
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            refused += not read_all(tmp_path)
        except Exception as error:
            raise AssertionError(f"mutant {number} of {name}: {error!r}: {text[:300]!r}") from error
        (tmp_path / name).write_text(lists[name], encoding="utf-8")
    assert 20 < refused < 200
