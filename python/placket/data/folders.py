"""Reader of folders of images, one folder for each class, as image classification sets lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NoReturn

from placket.data.columns import Columns
from placket.data.dataset import (
    SPLITS,
    Dataset,
    DatasetError,
    Problem,
    Split,
    brief,
    check_variety,
    divide,
    is_text,
    no_triples,
)
from placket.data.lists import SUFFIXES
from placket.schema import Attribute, AttributeSchema

__all__ = ["FolderDataset", "images_below"]

_NAMES = {"train": "train", "valid": "valid", "val": "valid", "test": "test"}


class FolderDataset(Dataset):
    """``<split>/<class>/.../image.jpg``, or ``<class>/.../image.jpg``, which is all "train".

    The one attribute, "class", has the names of the class folders as values. Splits are called train, valid
    (or val) and test. The lists of queries and candidates of "valid" and "test" are made as for a table
    (``TableLayout``). Hidden files, links to folders and files that are no images are left out.
    """

    LOOKED_FOR: ClassVar[str] = "a folder of images for each class"

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Look through the folders.

        Raises:
            DatasetError: there are no class folders with images.
        """
        path = Path(root)
        tops = _folders(path)
        if tops and all(top.name in _NAMES for top in tops):
            found = {_NAMES[top.name]: top for top in tops}
            if len(found) < len(tops):
                raise DatasetError(f"{path}: folder must have one of valid and val, got both")
        else:
            found = {"train": path}
        self._files = {
            split: [(kind.name, file) for kind in _folders(top) for file in images_below(kind)]
            for split, top in found.items()
        }
        kinds = sorted({kind for files in self._files.values() for kind, _ in files})
        if not kinds:
            raise DatasetError(f"{path}: data set must hold {self.LOOKED_FOR}, got none")
        for kind in kinds:
            if not is_text(kind):
                raise DatasetError(
                    f"{path}: name of a class must be UTF-8, got {brief(kind)}; rename the folder"
                )
        splits = tuple(split for split in SPLITS if self._files.get(split))
        super().__init__(path, AttributeSchema((Attribute("class", tuple(kinds)),)), splits)

    @staticmethod
    def recognises(root: str | os.PathLike[str]) -> bool:
        """Return whether there is an image in a folder of the folder."""
        return any(any(images_below(folder)) for folder in _folders(Path(root)))

    def _read(self, name: str) -> tuple[Split, list[Problem]]:
        numbers = {value: v for v, value in enumerate(self.schema[0].values)}
        files = self._files[name]
        columns = Columns()
        for kind, file in files:
            columns.add(file.relative_to(self.root).as_posix(), [(0, numbers[kind])])
        labels, filenames = columns.labels(self.schema.value_counts), columns.filenames
        problems = check_variety(labels, self.schema, str(self.root))
        queries, candidates = divide(filenames, labels) if name != "train" else (no_triples(), no_triples())
        split = Split(
            name=name,
            root=self.root,
            schema=self.schema,
            images=len(files),
            filenames=filenames,
            labels=labels,
            queries=queries,
            candidates=candidates,
            warnings=tuple(str(problem) for problem in problems),
            source=str(self.root),
            lines=columns.lines,
        )
        return split, problems


def _folders(path: Path) -> list[Path]:
    entries = sorted(path.iterdir()) if path.is_dir() else []
    return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def images_below(folder: Path) -> Iterator[Path]:
    """Yield the images below a folder in the order of their paths."""

    def refuse(error: OSError) -> NoReturn:
        raise DatasetError(f"{error.filename}: folder must be readable, got {error}")

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(place) / name
