from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import placket.data
from placket.data import DatasetError, FolderDataset, Loader, Preprocess, verify

Photograph = Callable[..., NDArray[np.uint8]]


def draw(root: Path, names: list[str], photograph: Photograph) -> None:
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(20 + i, 24)).save(path)


def test_a_folder_for_each_class_and_split(tmp_path: Path, photograph: Photograph) -> None:
    names = ["train/shirt/a.jpg", "train/shirt/deeper/b.PNG", "train/coat/a.webp", "val/coat/a.jpg"]
    names += [f"val/shirt/{i}.jpg" for i in range(40)]
    draw(tmp_path, names, photograph)
    (tmp_path / "train" / "shirt" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "shirt" / ".hidden.jpg").write_text("no image")
    data = placket.data.open(tmp_path)
    assert isinstance(data, FolderDataset)
    assert data.splits == ("train", "valid")
    assert [a.values for a in data.schema.attributes] == [("coat", "shirt")]
    train, valid = data.split("train"), data.split("valid")
    assert train.filenames == ("train/coat/a.webp", "train/shirt/a.jpg", "train/shirt/deeper/b.PNG")
    assert [train.labels[i] for i in range(3)] == [[(0, 0)], [(0, 1)], [(0, 1)]]
    assert len(valid) == 41
    assert 0 < len(valid.queries) < len(valid.candidates)
    assert len(valid.queries) + len(valid.candidates) == 41
    (batch,) = Loader(train, batch=3, shuffle=False, preprocess=Preprocess(size=16))
    assert batch.labels.tolist() == [[0], [1], [1]]
    assert verify(tmp_path).ok


def test_classes_without_splits_are_for_training(tmp_path: Path, photograph: Photograph) -> None:
    draw(tmp_path, ["coat/a.jpg", "shirt/a.jpg", "test/a.jpg"], photograph)
    data = placket.data.open(tmp_path)
    assert data.splits == ("train",)
    assert data.schema[0].values == ("coat", "shirt", "test")


def test_verify_names_the_image(tmp_path: Path, photograph: Photograph) -> None:
    draw(tmp_path, ["coat/a.jpg", "shirt/a.jpg"], photograph)
    (tmp_path / "coat" / "b.jpg").write_bytes(b"")
    (tmp_path / "shirt" / "b.jpg").write_bytes((tmp_path / "shirt" / "a.jpg").read_bytes())
    report = verify(tmp_path)
    damaged, duplicate = report.problems
    assert damaged.kind == "damaged"
    assert "coat/b.jpg" in str(damaged)
    assert duplicate.kind == "duplicate"
    assert "shirt/b.jpg must be there once" in str(duplicate)


def test_a_folder_without_images_is_named(tmp_path: Path, photograph: Photograph) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DatasetError, match=r"got none of these: .*; a folder of images for each class"):
        placket.data.open(tmp_path)
    draw(tmp_path, ["valid/coat/a.jpg", "val/coat/a.jpg"], photograph)
    with pytest.raises(DatasetError, match="folder must have one of valid and val, got both"):
        placket.data.open(tmp_path)


def test_names_that_are_not_utf8(tmp_path: Path, photograph: Photograph) -> None:
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / "test" / "shirt").mkdir(parents=True)
    Image.fromarray(photograph(20, 24)).save(tmp_path / "test" / "shirt" / f"{name}.png")
    data = placket.data.open(tmp_path)
    assert data.split("test").filenames == (f"test/shirt/{name}.png",)
    assert len(data.split("test").queries) + len(data.split("test").candidates) == 1
    assert verify(data).ok
    (tmp_path / "test" / "shirt").rename(tmp_path / "test" / name)
    with pytest.raises(DatasetError, match=r": name of a class must be UTF-8, got 'caf.udce9'; rename the"):
        placket.data.open(tmp_path)


def test_a_folder_that_cannot_be_read_is_not_left_out(
    tmp_path: Path, photograph: Photograph, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path, ["shirt/a.jpg", "coat/new/a.jpg"], photograph)
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("new"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DatasetError, match=r"coat/new: folder must be readable, got .*Permission denied"):
        placket.data.open(tmp_path)
