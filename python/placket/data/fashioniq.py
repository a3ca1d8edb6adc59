"""Reader of FashionIQ (Wu et al., CVPR 2021)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from placket.data.columns import Columns
from placket.data.dataset import (
    SPLITS,
    Compositions,
    Dataset,
    DatasetError,
    Problem,
    Split,
    brief,
    filename_problem,
)
from placket.data.lists import JsonList, Queries, find_images, finish, is_captions, number_of
from placket.schema import AttributeSchema

__all__ = ["FashionIqDataset"]

_CATEGORIES = ("dress", "shirt", "toptee")
_NAMES = {"train": "train", "valid": "val", "test": "test"}
_FOLDERS = ("images", "resized_image", "image_data", "")


class FashionIqDataset(Dataset):
    """A folder of ``image_splits/split.{category}.{split}.json``, ``captions/cap.{category}.{split}.json``.

    Categories are dress, shirt and toptee, splits train, val (called valid) and test. The first list names
    the images of a category, the second has objects of "candidate" (the reference image), "target" (withheld
    in test) and "captions" (sentences). Each file needs the other.

    Image ``id`` is ``{id}.jpg``, ``{id}.png`` or of another suffix in ``images/``, ``resized_image/``,
    ``image_data/`` or the folder itself, the first of them with images; one that is absent counts as
    ``{id}.jpg``. The attribute is "category", and an image in several lists of a split has several values.

    The gallery of the "original split" is all images of the category, that of the "VAL split" the references
    and targets of its compositions.
    """

    shared_images = True
    LOOKED_FOR: ClassVar[str] = "image_splits/split.{dress,shirt,toptee}.{train,val,test}.json (FashionIQ)"

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Look which files are there.

        Raises:
            DatasetError: there is none.
        """
        path = Path(root)
        found = [(category, split) for category, split, _ in _files(path)]
        if not found:
            raise DatasetError(f"{path}: data set must hold {self.LOOKED_FOR}, got none")
        categories = [category for category in _CATEGORIES if category in {c for c, _ in found}]
        self._found = set(found)
        self._images: dict[str, dict[str, int]] = {}
        super().__init__(
            path,
            AttributeSchema.of({"category": categories}),
            tuple(split for split in SPLITS if split in {s for _, s in found}),
        )

    @staticmethod
    def recognises(root: str | os.PathLike[str]) -> bool:
        """Return whether a list of the layout is in a folder."""
        return any(True for _ in _files(Path(root)))

    def _categories(self, split: str) -> list[tuple[int, str]]:
        """Return number and name of the categories that a split has."""
        names = enumerate(self.schema[0].values)
        return [(number, name) for number, name in names if (name, split) in self._found]

    def _read(self, name: str) -> tuple[Split, list[Problem]]:
        problems: list[Problem] = []
        folder, files = find_images(self.root, _FOLDERS)
        earlier = self._earlier(name)
        labels: dict[str, list[int]] = {}
        for number, category in self._categories(name):
            entries = JsonList(_file(self.root, "image_splits/split", category, name), problems)
            for entry, image in entries:
                if not isinstance(image, str) or filename_problem(image, self.root) is not None:
                    entries.report(
                        "unparsable", entry, f"entry must be the id of an image, got {brief(image)}"
                    )
                    continue
                values = labels.setdefault(image, [])
                if number in values:
                    entries.report("duplicate", entry, f"image {image} must be there once, got it again")
                else:
                    values.append(number)
                others = earlier.get(image, {})
                if others:
                    # The lists of other categories were drawn apart, so that is told and not refused.
                    kind = "in two splits" if category in others else "duplicate"
                    other = others.get(category, next(iter(others.values())))
                    entries.report(kind, entry, f"image {image} must be in one split, got it in {other} too")
        columns = Columns()
        for image, values in labels.items():
            filename = (Path(folder) / files.get(image, f"{image}.jpg")).as_posix()
            columns.add(filename, [(0, value) for value in values])
        self._images[name] = {image: i for i, image in enumerate(labels)}
        split = Split(
            name=name,
            root=self.root,
            schema=self.schema,
            images=len(columns),
            filenames=columns.filenames,
            labels=columns.labels(self.schema.value_counts),
            source=str(self.root / "image_splits"),
            lines=columns.lines,
        )
        if not labels and not problems:
            message = f"split '{name}' must have at least one image, got none"
            problems.append(Problem("unparsable", split.source, None, message))
        return finish(split, problems), problems

    def _earlier(self, name: str) -> dict[str, dict[str, str]]:
        """Return the images of the splits before: the file of each category that lists them."""
        found: dict[str, dict[str, str]] = {}
        for split in self.splits[: self.splits.index(name)]:
            for _, category in self._categories(split):
                path = _file(self.root, "image_splits/split", category, split)
                for _, image in JsonList(path, []):  # what is wrong is told with that split
                    if isinstance(image, str):
                        found.setdefault(image, {})[category] = path.name
        return found

    def _read_compositions(self, split: Split, problems: list[Problem]) -> Compositions:
        images, queries = self._images[split.name], Queries()
        for number, category in self._categories(split.name):
            inside = {image: i for image, i in images.items() if (0, number) in split.labels[i]}
            entries = JsonList(_file(self.root, "captions/cap", category, split.name), problems)
            for entry, query in entries:
                query = query if isinstance(query, dict) else {}
                reference, target, captions = (query.get(key) for key in ("candidate", "target", "captions"))
                withheld = split.name == "test" and target is None
                if not is_captions(captions):
                    message = f"captions must be one sentence or more, got {brief(captions)}"
                    entries.report("unparsable", entry, message)
                elif number_of(reference, inside) < 0 or (number_of(target, inside) < 0 and not withheld):
                    message = (
                        f"candidate and target must be images of {category}, got {brief([reference, target])}"
                    )
                    entries.report("out of range", entry, message)
                else:
                    ends = number_of(reference, inside), number_of(target, inside)
                    queries.add(*ends, captions, category=number)
        return queries.compositions()


def _file(root: Path, kind: str, category: str, split: str) -> Path:
    return root / f"{kind}.{category}.{_NAMES[split]}.json"


def _files(root: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield category, split and path of the files that are there."""
    for category in _CATEGORIES:
        for split in SPLITS:
            for kind in ("image_splits/split", "captions/cap"):
                path = _file(root, kind, category, split)
                if path.is_file():
                    yield category, split, path
