"""Reader of Fashion200k (Han et al., ICCV 2017), composed queries as TIRG has them (Vo et al., CVPR 2019)."""

from __future__ import annotations

import os
import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np

from placket.data.columns import Columns, Texts
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
from placket.data.lists import Queries, TextList, finish
from placket.schema import AttributeSchema

__all__ = ["Fashion200kDataset"]

_QUERIES = "test_queries.txt"


class Fashion200kDataset(Dataset):
    """A folder with ``labels/{category}_{train,test}_detect_all.txt`` and the images that they name.

    A line is the path of an image, the score of its detection and the description of its product, with tabs
    between; the images are cut to the garment already, so there are no boxes. Identities are products, which
    are the folders that images lie in. The attribute is "category".

    Compositions follow TIRG: reference and target are images whose descriptions differ in one word, and the
    text is "replace a with b". Those of "test" are the lines of ``test_queries.txt`` where it is there, the
    paths of reference and target; else, and in "train", one is drawn for each image that has a target
    (``draw_compositions``). TIRG counts any image with the target's description as an answer, which
    ``captions`` tells. Its tokens "dotmark", "andmark", "questionmark" and "starmark" are ``. & ? *`` here.
    """

    LOOKED_FOR: ClassVar[str] = "labels/{category}_{train,test}_detect_all.txt (Fashion200k)"

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Look which lists are there.

        Raises:
            DatasetError: there is none.
        """
        path = Path(root)
        self._found = {(split, category): file for split, category, file in _files(path)}
        if not self._found:
            raise DatasetError(f"{path}: data set must hold {self.LOOKED_FOR}, got none")
        self._products: dict[str, int] = {}
        self._captions: dict[str, Texts] = {}
        self._parts: dict[str, tuple[Split, list[Problem]]] = {}
        super().__init__(
            path,
            AttributeSchema.of({"category": sorted({category for _, category in self._found})}),
            tuple(split for split in SPLITS if split in {s for s, _ in self._found}),
        )

    @staticmethod
    def recognises(root: str | os.PathLike[str]) -> bool:
        """Return whether a list of the layout is in a folder."""
        return any(True for _ in _files(Path(root)))

    @property
    def identities(self) -> tuple[str, ...]:
        """What ``Split.identities`` counts: the folders of the products."""
        self._read(self.splits[0])
        return tuple(self._products)

    def draw_compositions(self, split: str, epoch: int = 0) -> Compositions:
        """Draw a composition for each image of a split that has a target, others for each epoch.

        One of the words of the reference's description is left out, one of the other words that descriptions
        have in its place is chosen, then an image of that description; each time all are equally likely.
        (TIRG leaves out a word inside of longer words too.)

        Raises:
            DatasetError: something in the lists is wrong.
        """
        self.split(split)
        return _draw(self._captions[split], epoch)

    def _read(self, name: str) -> tuple[Split, list[Problem]]:
        if not self._parts:  # all together, so that products have the same numbers whatever is asked first
            earlier: dict[str, str] = {}
            self._parts = {split: self._read_split(split, earlier) for split in self.splits}
        split, problems = self._parts[name]
        return split, [*problems]

    def _read_split(self, name: str, earlier: dict[str, str]) -> tuple[Split, list[Problem]]:
        """Read a split; ``earlier`` has the images and products of those before, and gets its own."""
        problems: list[Problem] = []
        columns = Columns()
        here: dict[str, str] = {}
        for number, category in enumerate(self.schema[0].values):
            if (name, category) not in self._found:
                continue
            entries = TextList(self._found[name, category], problems)
            for line, text in entries:
                filename, caption = _parse(entries, line, text, self.root)
                if filename is None:
                    continue
                product = PurePosixPath(filename).parent.name
                folder = f"{product}/"  # no image is called so
                if filename in here:
                    message = f"image {filename} must be there once, got it in {here[filename]} too"
                    entries.report("duplicate", line, message)
                    continue
                if filename in earlier:
                    message = f"image {filename} must be in one split, got it in {earlier[filename]} too"
                    entries.report("in two splits", line, message)
                elif product and folder in earlier and folder not in here:
                    # Whether the published lists part products is not known, so that is told and not refused.
                    message = f"product {product} must be in one split, got it in {earlier[folder]} too"
                    entries.report("duplicate", line, message)
                here[filename] = here[folder] = entries.path.name
                identity = self._products.setdefault(product, len(self._products)) if product else -1
                columns.add(filename, [(0, number)], identity=identity, caption=caption)
        earlier |= here
        self._captions[name] = columns.captions
        split = Split(
            name=name,
            root=self.root,
            schema=self.schema,
            images=len(columns),
            filenames=columns.filenames,
            labels=columns.labels(self.schema.value_counts),
            identities=columns.identities,
            source=str(self.root / "labels"),
            lines=columns.lines,
        )
        if not len(split) and not problems:
            message = f"split '{name}' must have at least one image, got none"
            problems.append(Problem("unparsable", split.source, None, message))
        return finish(split, problems), problems

    def _read_captions(self, split: Split, problems: list[Problem]) -> Texts:
        return self._captions[split.name]

    def _read_compositions(self, split: Split, problems: list[Problem]) -> Compositions:
        path = self.root / _QUERIES
        if split.name != "test" or not path.exists():
            return _draw(self._captions[split.name], epoch=0)
        images = {filename: i for i, filename in enumerate(split.filenames)}
        captions, queries = self._captions[split.name], Queries()
        entries = TextList(path, problems)
        for line, text in entries:
            ends = [images.get(filename, -1) for filename in text.split()]
            if len(ends) != 2:
                message = f"line must be the paths of reference and target, got {brief(text)}"
                entries.report("unparsable", line, message)
            elif -1 in ends:
                message = f"reference and target must be images of the split, got {brief(text)}"
                entries.report("out of range", line, message)
            else:
                reference, target = (captions[end].split() for end in ends)
                if not reference or not target:
                    message = f"reference and target must have descriptions, got none of {brief(text)}"
                    entries.report("out of range", line, message)
                    continue
                old, new = _foreign(reference, target), _foreign(target, reference)
                queries.add(ends[0], ends[1], [_replace(old, new)])
        return queries.compositions()


def _files(root: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield split, category and path of the lists that are there."""
    for path in sorted((root / "labels").glob("*_detect_all.txt")):
        match = re.fullmatch(r"(.+)_(train|test)_detect_all\.txt", path.name, re.DOTALL)
        if match and path.is_file() and is_text(path.name):
            yield match[2], match[1], path


def _parse(entries: TextList, line: int, text: str, root: Path) -> tuple[str | None, str]:
    """Return image and description of a line; no image after telling what is wrong with the line."""
    cells = text.split("\t")
    if len(cells) != 3 or not _is_number(cells[1]) or not is_text(cells[2]):
        message = f"line must be path, score and description with tabs between, got {brief(text)}"
        entries.report("unparsable", line, message)
        return None, ""
    problem = filename_problem(cells[0], root)
    if problem is not None:
        entries.report("unparsable", line, problem)
        return None, ""
    return cells[0], cells[2].strip()


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _replace(old: str, new: str) -> str:
    # The words of the published queries, whatever the files of prompts say.
    return f"replace {old} with {new}"


def _foreign(words: Sequence[str], others: Sequence[str]) -> str:
    """Return the first word that is not among others, the last where all are: TIRG's rule."""
    return next((word for word in words if word not in others), words[-1])


def _draw(captions: Texts, epoch: int) -> Compositions:
    """Draw a composition for each image whose description has another that differs in one word."""
    images_of: dict[str, list[int]] = defaultdict(list)
    for image, caption in enumerate(captions):
        images_of[" ".join(caption.split())].append(image)
    # By what is left without a word: the words that were there, with their captions, in order.
    places: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for caption in images_of:
        for word, rest in _leave_one_out(caption):
            places[rest].append((word, caption))
    places = {rest: sorted(found) for rest, found in places.items() if len({word for word, _ in found}) > 1}
    chances = np.random.Generator(np.random.Philox(epoch)).random((len(captions), 3))
    queries = Queries()
    for reference, caption in enumerate(captions):
        left_out = [pair for pair in _leave_one_out(caption) if pair[1] in places]
        if not left_out:
            continue
        first, second, third = chances[reference].tolist()
        old, rest = left_out[int(first * len(left_out))]
        found = places[rest]
        begin, end = (bisect(found, old, key=lambda pair: pair[0]) for bisect in (bisect_left, bisect_right))
        place = int(second * (len(found) - (end - begin)))
        new, other = found[place if place < begin else place + end - begin]
        targets = images_of[other]
        queries.add(reference, targets[int(third * len(targets))], [_replace(old, new)])
    return queries.compositions()


def _leave_one_out(caption: str) -> list[tuple[str, str]]:
    """Return each word of a caption with the others; equal pairs once."""
    words = caption.split()
    pairs = [(word, " ".join(words[:i] + words[i + 1 :])) for i, word in enumerate(words)]
    return [*dict.fromkeys(pairs)]
