from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from placket.data import garments
from placket.data.garments import ATTRIBUTES, LOCAL, SPLITS, generate

ITEMS, SIZE = 600, 64
NAMES = list(ATTRIBUTES)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data") / "set"
    generate(directory, items=ITEMS, size=SIZE, seed=3, workers=2)
    return directory


def read(path: Path) -> NDArray[np.int64]:
    return np.loadtxt(path, dtype=np.int64, ndmin=2)


def filenames(root: Path, split: str) -> list[str]:
    return (root / f"filenames_{split}.txt").read_text().split()


def labels(root: Path, split: str) -> NDArray[np.int64]:
    return read(root / f"label_{split}.txt")[:, 2::2]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_bytes_depend_on_the_seed_and_not_on_workers(tmp_path: Path) -> None:
    for name, seed, workers in (("one", 5, 1), ("two", 5, 2), ("three", 5, 3), ("other", 6, 1)):
        generate(tmp_path / name, items=50, size=48, seed=seed, workers=workers)
    one = contents(tmp_path / "one")
    assert contents(tmp_path / "two") == one
    assert contents(tmp_path / "three") == one
    other = contents(tmp_path / "other")
    assert not [name for name in one if name.endswith(".jpg") and one[name] == other[name]]


def test_lists_name_every_image_once_with_every_attribute(root: Path) -> None:
    assert {split: len(filenames(root, split)) for split in SPLITS} == {
        "train": 420,
        "valid": 60,
        "test": 120,
    }
    every = [name for split in SPLITS for name in filenames(root, split)]
    assert sorted(every) == sorted(str(path.relative_to(root)) for path in root.glob("img/*"))
    assert len(list(root.glob("masks/*"))) == ITEMS
    for split in SPLITS:
        rows = read(root / f"label_{split}.txt")
        assert rows[:, 0].tolist() == list(range(len(rows)))
        assert (rows[:, 1::2] == np.arange(len(ATTRIBUTES))).all()
        for attribute, names in enumerate(ATTRIBUTES.values()):
            counts = np.bincount(rows[:, 2 + 2 * attribute], minlength=len(names))
            assert counts.size == len(names)
            assert counts.max() - counts.min() <= 1
    meta = json.loads((root / "meta.json").read_text())["garments"]
    assert meta["VALUES"] == {name: list(names) for name, names in ATTRIBUTES.items()}
    assert meta["ATTRIBUTES_NUM"] == {name: len(names) for name, names in ATTRIBUTES.items()}


@pytest.mark.parametrize("split", ["valid", "test"])
def test_queries_and_candidates_part_the_images(root: Path, split: str) -> None:
    query, candidate = read(root / f"query_{split}.txt"), read(root / f"candidate_{split}.txt")
    truth = labels(root, split)
    for rows in (query, candidate):
        assert (truth[rows[:, 0], rows[:, 1]] == rows[:, 2]).all()
    for attribute in range(len(ATTRIBUTES)):
        asked = query[query[:, 1] == attribute, 0]
        offered = candidate[candidate[:, 1] == attribute, 0]
        assert sorted([*asked, *offered]) == list(range(len(truth)))
        assert len(asked) * 4 == len(offered)


@pytest.mark.parametrize("split", SPLITS)
def test_regions_are_the_bounds_of_the_masks(root: Path, split: str) -> None:
    regions, boxes = read(root / f"regions_{split}.txt"), read(root / f"bbox_{split}.txt")
    for image, name in enumerate(filenames(root, split)):
        with Image.open(root / name) as photo:
            assert photo.size == (SIZE, SIZE)
        mask = np.asarray(Image.open(root / "masks" / f"{Path(name).stem}.png"))
        assert mask.shape == (SIZE, SIZE)
        x0, y0, x1, y1 = boxes[image]
        assert 0 <= x0 < x1 <= SIZE
        assert 0 <= y0 < y1 <= SIZE
        rows = regions[regions[:, 0] == image, 1:]
        assert rows[:, 0].tolist() == [0, 1, 1, 2, 3, 4, 5]
        for attribute in range(len(ATTRIBUTES)):
            parts = rows[rows[:, 0] == attribute, 1:]
            ys, xs = np.nonzero(mask >> attribute & 1)
            assert [xs.min(), ys.min()] == parts[:, :2].min(axis=0).tolist()
            assert [xs.max() + 1, ys.max() + 1] == parts[:, 2:].max(axis=0).tolist()


def test_regions_are_small_and_do_not_tell_the_value(root: Path) -> None:
    """A local region covers a small part of the picture, and its size does not depend on its value."""
    regions, truth = read(root / "regions_train.txt"), labels(root, "train")
    area = (regions[:, 4] - regions[:, 2]) * (regions[:, 5] - regions[:, 3]) / SIZE**2
    for attribute in map(NAMES.index, LOCAL):
        rows = regions[:, 1] == attribute
        values = truth[regions[rows, 0], attribute]
        means = np.array([area[rows][values == value].mean() for value in range(values.max() + 1)])
        assert means.min() > 0.015
        assert means.max() < 0.25
        assert means.max() / means.min() < 1.12


def test_attributes_are_independent(root: Path) -> None:
    """Chi-squared of any two attributes in 420 images, below the 99.99 % point of the largest table."""
    truth = labels(root, "train")
    for first, second in combinations(range(len(ATTRIBUTES)), 2):
        table = np.zeros((truth[:, first].max() + 1, truth[:, second].max() + 1))
        np.add.at(table, (truth[:, first], truth[:, second]), 1.0)
        expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
        assert ((table - expected) ** 2 / expected).sum() < 52.4


def mean_average_precision(relevant: NDArray[np.bool_]) -> float:
    """MAP in per cent; relevant [queries, candidates] in the order of the ranking."""
    precision = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)
    return float(100.0 * ((precision * relevant).sum(1) / relevant.sum(1)).mean())


@pytest.mark.parametrize("crop", [False, True], ids=["whole picture", "bbox"])
def test_pixels_rank_no_better_than_chance(root: Path, crop: bool) -> None:
    """16 x 16 pixels, mean removed, cosine; each image asks among all others, so that 600 tell 5 points."""
    pixels, truth = [], []
    for split in SPLITS:
        truth.append(labels(root, split))
        for name, box in zip(filenames(root, split), read(root / f"bbox_{split}.txt").tolist(), strict=True):
            with Image.open(root / name) as photo:
                cropped = photo.crop(tuple(box)) if crop else photo
                pixels.append(
                    np.asarray(cropped.resize((16, 16), Image.Resampling.BOX), dtype=np.float64).ravel()
                )
    x, y = np.stack(pixels), np.concatenate(truth)
    x -= x.mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    similarity = x @ x.T
    np.fill_diagonal(similarity, np.inf)
    order = np.argsort(-similarity, axis=1)[:, 1:]
    shuffled = np.random.default_rng(0).permuted(order, axis=1)
    for attribute in range(len(ATTRIBUTES)):
        same = y[:, attribute, None] == y[None, :, attribute]
        chance = mean_average_precision(np.take_along_axis(same, shuffled, axis=1))
        assert mean_average_precision(np.take_along_axis(same, order, axis=1)) < chance + 5.0


def test_captions_name_every_value(root: Path) -> None:
    lines = (root / "captions_test.txt").read_text().splitlines()
    assert [int(line.split("\t")[0]) for line in lines] == list(range(120))
    for line, values in zip(lines, labels(root, "test"), strict=True):
        sentence = line.split("\t")[1]
        assert sentence == garments.caption(values.tolist())
    assert garments.caption([4, 0, 3, 2, 2, 1]) == (
        "a sleeveless striped ankle-length dress with a collar, a zip and a flap pocket"
    )
    sentences = {garments.caption(values) for values in np.ndindex(*map(len, ATTRIBUTES.values()))}
    assert len(sentences) == np.prod([len(names) for names in ATTRIBUTES.values()])


def test_replaces_its_own_set_and_nothing_else(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    generate(ours, items=50, size=32, workers=1)
    (ours / "img" / "000000.jpg").unlink()
    generate(ours, items=50, size=32, workers=1)
    assert (ours / "img" / "000000.jpg").is_file()

    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "meta.json").write_text('{"fashion": {"ATTRIBUTES": []}}')
    with pytest.raises(FileExistsError, match=r"directory must be new, empty or hold .*, got .*theirs"):
        generate(theirs, items=50, size=32, workers=1)
    assert [path.name for path in theirs.iterdir()] == ["meta.json"]


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(garments, "_write_meta", fail)
    with pytest.raises(OSError, match="disk full"):
        generate(tmp_path / "set", items=50, size=32, workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": 49}, "generate: items must be at least 50, got 49"),
        ({"size": 16}, "generate: size must be from 32 to 4096 pixels, got 16"),
        ({"seed": -1}, r"generate: seed must be from 0 to 2\*\*64 - 1, got -1"),
        ({"workers": 0}, "generate: workers must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(tmp_path / "set", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_drawing_needs_neither_torch_nor_threads() -> None:
    program = (
        "import runpy, sys, threading; runpy.run_path(sys.argv[1]); "
        "assert 'torch' not in sys.modules and threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", program, garments.__file__], check=True)
