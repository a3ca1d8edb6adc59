"""Reader of CIRR (Liu et al., ICCV 2021), version rc2."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np

from placket.data.columns import Columns, Ints
from placket.data.dataset import (
    SPLITS,
    Compositions,
    Dataset,
    DatasetError,
    Problem,
    Split,
    brief,
    filename_problem,
    is_text,
)
from placket.data.lists import JsonList, Queries, finish, is_captions, number_of, read_json
from placket.schema import AttributeSchema

__all__ = ["CirrDataset"]

_NAMES = {"train": "train", "valid": "val", "test": "test1"}


class CirrDataset(Dataset):
    """A folder with ``image_splits/split.rc2.{split}.json`` and ``captions/cap.rc2.{split}.json``.

    Splits are train, val (called valid) and test1 (called test); each needs both files. The first maps names
    of images to their paths, in ``img_raw/`` where that is there, else in the folder. The second has objects
    of "pairid", "reference", "target_hard" (withheld in test1), "caption" and "img_set", whose "members" are
    images alike, the reference among them; ``Compositions.subset`` has the others, among which Recall_subset
    seeks the target. There are no attributes.
    """

    LOOKED_FOR: ClassVar[str] = "image_splits/split.rc2.{train,val,test1}.json (CIRR)"

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Look which files are there.

        Raises:
            DatasetError: there is none.
        """
        path = Path(root)
        splits = tuple(split for split in SPLITS if any(file.is_file() for file in _files(path, split)))
        if not splits:
            raise DatasetError(f"{path}: data set must hold {self.LOOKED_FOR}, got none")
        self._images: dict[str, dict[str, int]] = {}
        self._pair_ids: dict[str, Ints] = {}
        super().__init__(path, AttributeSchema(()), splits)

    @staticmethod
    def recognises(root: str | os.PathLike[str]) -> bool:
        """Return whether a list of the layout is in a folder."""
        return any(file.is_file() for split in SPLITS for file in _files(Path(root), split))

    def _read(self, name: str) -> tuple[Split, list[Problem]]:
        problems: list[Problem] = []
        path = _files(self.root, name)[0]
        folder = "img_raw" if (self.root / "img_raw").is_dir() else ""
        earlier: dict[str, str] = {}
        for split in self.splits[: self.splits.index(name)]:  # what is wrong with it is told with that split
            other = _files(self.root, split)[0]
            earlier |= dict.fromkeys(read_json(other, dict, []), other.name)
        columns, images = Columns(), self._images.setdefault(name, {})
        images.clear()
        for entry, (image, file) in enumerate(read_json(path, dict, problems).items(), start=1):
            if (
                not isinstance(file, str)
                or not is_text(image)
                or filename_problem(file, self.root) is not None
            ):
                message = (
                    f"entry must be the name of an image and its path, got {brief(image)}: {brief(file)}"
                )
                problems.append(Problem("unparsable", str(path), entry, message))
                continue
            if image in earlier:
                message = f"image {image} must be in one split, got it in {earlier[image]} too"
                problems.append(Problem("in two splits", str(path), entry, message))
            images[image] = columns.add(str(PurePosixPath(folder) / file), line=entry)
        if not images and not problems:
            problems.append(Problem("unparsable", str(path), None, "file must name an image, got none"))
        split_read = Split(
            name=name,
            root=self.root,
            schema=self.schema,
            images=len(columns),
            filenames=columns.filenames,
            labels=columns.labels(()),
            source=str(path),
            lines=columns.lines,
        )
        return finish(split_read, problems), problems

    def image_names(self, split: str) -> list[str]:
        """Return what the lists and the evaluation server call the images of a split."""
        self.split(split)
        return list(self._images[split])

    def pair_ids(self, split: str) -> Ints:
        """Return what the evaluation server calls the compositions of a split, [m]."""
        self.compositions(split)
        return self._pair_ids[split]

    def _read_compositions(self, split: Split, problems: list[Problem]) -> Compositions:
        images, queries = self._images[split.name], Queries()
        entries = JsonList(_files(self.root, split.name)[1], problems)
        pair_ids: list[int] = []
        size: int | None = None
        for entry, query in entries:
            query = query if isinstance(query, dict) else {}
            keys = ("pairid", "reference", "target_hard", "caption", "img_set")
            pair, reference, target, caption, image_set = (query.get(key) for key in keys)
            captions: object = [caption]
            named = image_set.get("members") if isinstance(image_set, dict) else None
            members = [number_of(name, images) for name in named] if isinstance(named, list) else []
            ends = number_of(reference, images), number_of(target, images)
            withheld = split.name == "test" and target is None
            if type(pair) is not int or not 0 <= pair < 2**31:
                entries.report("unparsable", entry, f"pairid must be a number, got {brief(pair)}")
            elif not is_captions(captions):
                entries.report("unparsable", entry, f"caption must be a sentence, got {brief(caption)}")
            elif ends[0] < 0 or (ends[1] < 0 and not withheld):
                message = f"reference and target_hard must be images, got {brief([reference, target])}"
                entries.report("out of range", entry, message)
            elif (
                -1 in members
                or len(set(members)) < len(members)
                or not {*ends} - {-1} <= {*members}
                or len(members) != (size or len(members))
            ):
                want = "different images, reference and target_hard among them, as many as before"
                entries.report(
                    "out of range", entry, f"members of img_set must be {want}, got {brief(named)}"
                )
            else:
                size = len(members)
                pair_ids.append(pair)
                queries.add(*ends, captions, subset=[member for member in members if member != ends[0]])
        self._pair_ids[split.name] = np.array(pair_ids, dtype=np.int32)
        return queries.compositions()


def _files(root: Path, split: str) -> tuple[Path, Path]:
    """Return where the images and the compositions of a split are listed."""
    name = f"rc2.{_NAMES[split]}.json"
    return root / f"image_splits/split.{name}", root / f"captions/cap.{name}"
