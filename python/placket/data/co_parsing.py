"""Reader of Clothing Co-Parsing (Yang, Luo and Lin, CVPR 2014), with its pixel labels as pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from placket import _C
from placket.data.columns import Columns, Labels, Masks, Texts
from placket.data.dataset import (
    SPLITS,
    Dataset,
    DatasetError,
    Problem,
    Split,
    brief,
    filename_problem,
    is_text,
)
from placket.data.lists import finish, read_json
from placket.data.regions import region_rows
from placket.schema import AttributeSchema

__all__ = ["CoParsingDataset"]

_BODY = ("hair", "skin")
_MOST_NAMES = 256  # numbers of 8 bits


class CoParsingDataset(Dataset):
    """A folder of ``photos/{id}.jpg``, ``labels/{id}.png``, ``label_names.json`` and ``splits.json``.

    A label picture has its photo's size and one grey channel of 8 bits: of each pixel, the place of its name
    in the list ``label_names.json``, whose first name is the background. ``splits.json`` maps ids to train,
    valid and test.

    A region (``region_split``) is all pixels of one name in a photo, in one piece or several: hair, arms and
    bags divide what is one garment. Its box is the smallest that holds them, its attribute "category" their
    name. An image of ``split`` has the categories of its regions.
    """

    LOOKED_FOR: ClassVar[str] = "label_names.json, splits.json (Clothing Co-Parsing)"

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        leave_out: Sequence[str] | None = None,
        least_share: float = 0.001,
    ) -> None:
        """Read names and splits.

        Args:
            root: the folder.
            leave_out: names, besides the background, that are no regions; by default those of the body, hair
                and skin, where there are such.
            least_share: of the photo's pixels that a region must have, at least.

        Raises:
            DatasetError: names or splits cannot be read, or ``leave_out`` has another name.
            ValueError: ``least_share`` is not in [0, 1).
        """
        if not 0 <= least_share < 1:
            raise ValueError(f"CoParsingDataset: least_share must be in [0, 1), got {least_share}")
        path = Path(root)
        self.names: tuple[str, ...] = _read_names(path / "label_names.json")
        """What the numbers of the label pictures mean."""
        if leave_out is None:
            leave_out = [name for name in _BODY if name in self.names]
        unknown = [name for name in leave_out if name not in self.names]
        if unknown:
            raise DatasetError(f"{path}: leave_out must be names of label_names.json, got {brief(unknown)}")
        kept = [number for number, name in enumerate(self.names) if number > 0 and name not in leave_out]
        if not kept:
            raise DatasetError(f"{path}: leave_out must leave a name besides the background, got none")
        # Category of each number, -1 for none.
        self._category = np.full(_MOST_NAMES, -1)
        self._category[kept] = np.arange(len(kept))
        self._least_share = least_share
        self._regions: dict[str, NDArray[np.int32]] = {}
        self._wrong: list[Problem] = []
        self._photos = _read_splits(path, self._wrong)
        splits = tuple(split for split in SPLITS if any(split == s for _, _, s in self._photos))
        if not splits:
            raise DatasetError(f"{path / 'splits.json'}: file must put a photo in a split, got none")
        schema = AttributeSchema.of({"category": [self.names[number] for number in kept]})
        super().__init__(path, schema, splits)

    @staticmethod
    def recognises(root: str | os.PathLike[str]) -> bool:
        """Return whether the two lists are in a folder."""
        return all((Path(root) / name).is_file() for name in ("label_names.json", "splits.json"))

    def _read(self, name: str) -> tuple[Split, list[Problem]]:
        problems = [*self._wrong]
        columns = Columns()
        rows: list[tuple[int, ...]] = []
        for entry, photo, split in self._photos:
            if split == name:
                found = self._regions_of(self.root / "labels" / f"{photo}.png", problems)
                rows += [(len(columns), *region) for region in found]
                labels = [(0, int(self._category[number])) for number, *_ in found]
                columns.add(f"photos/{photo}.jpg", labels, line=entry)
        self._regions[name] = np.array(rows, dtype=np.int32).reshape(-1, 6)
        split_read = Split(
            name=name,
            root=self.root,
            schema=self.schema,
            images=len(columns),
            filenames=columns.filenames,
            labels=columns.labels(self.schema.value_counts),
            source=str(self.root / "splits.json"),
            lines=columns.lines,
        )
        return finish(split_read, problems), problems

    def _regions_of(self, file: Path, problems: list[Problem]) -> list[tuple[int, ...]]:
        """Return number, x0, y0, x1, y1 of each region of a label picture, in the order of their numbers."""
        try:
            picture = _C.decode_mask(os.fspath(file))
        except RuntimeError as error:
            kind = "damaged" if file.exists() else "missing"
            problems.append(Problem(kind, str(file), None, f"label picture must be readable, got {error}"))
            return []
        if picture.max() >= len(self.names):
            message = f"numbers must be below {len(self.names)}, the names there are, got {picture.max()}"
            problems.append(Problem("out of range", str(file), None, message))
        counts = np.bincount(picture.ravel(), minlength=_MOST_NAMES)
        large = (counts > 0) & (counts >= self._least_share * picture.size) & (self._category >= 0)
        regions: list[tuple[int, ...]] = []
        for number in np.flatnonzero(large).tolist():
            own = picture == number
            (xs,), (ys,) = np.nonzero(own.any(axis=0)), np.nonzero(own.any(axis=1))
            regions.append((number, int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1))
        return regions

    def _read_region_split(self, split: Split, problems: list[Problem]) -> Split | None:
        rows = self._regions[split.name]
        photos, numbers, boxes = rows[:, 0], rows[:, 1], rows[:, 2:]
        region = np.arange(len(rows))
        labels = Labels.gather(
            region, np.zeros_like(region), self._category[numbers], len(rows), self.schema.value_counts
        )
        ids = [Path(split.filenames[photo]).stem for photo in range(len(split))]
        files = Texts(f"labels/{ids[photo]}.png" for photo in photos.tolist())
        return region_rows(split, photos, boxes, labels, Masks(files, numbers.astype(np.uint8)))


def _read_names(file: Path) -> tuple[str, ...]:
    problems: list[Problem] = []
    names: list[Any] = read_json(file, list, problems)
    if problems:
        raise DatasetError(str(problems[0]))
    good = all(isinstance(name, str) and is_text(name) and name for name in names)
    if not good or len(set(names)) < len(names) or not 2 <= len(names) <= _MOST_NAMES:
        raise DatasetError(f"{file}: list must be of 2 to {_MOST_NAMES} different names, got {brief(names)}")
    return tuple(names)


def _read_splits(root: Path, problems: list[Problem]) -> list[tuple[int, str, str]]:
    """Return entry (from 1), id and split of each photo, in the order of the ids."""
    file = root / "splits.json"
    entries: dict[str, Any] = read_json(file, dict, problems)
    if problems:
        raise DatasetError(str(problems[0]))
    photos = []
    for entry, (photo, split) in enumerate(entries.items(), start=1):
        if split not in SPLITS:
            message = f"split of {brief(photo)} must be one of {', '.join(SPLITS)}, got {brief(split)}"
            problems.append(Problem("out of range", str(file), entry, message))
        elif "/" in photo or filename_problem(photo, root) is not None:
            message = f"key must be the id of a photo, got {brief(photo)}"
            problems.append(Problem("unparsable", str(file), entry, message))
        else:
            photos.append((entry, photo, split))
    return sorted(photos, key=lambda row: row[1])
