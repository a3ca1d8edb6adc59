"""A data set in one file: packing it, and reading it again.

The images lie one after another, as their files or as decoded pixels, and are mapped into memory rather than
read; all lists of the data set are in the same file. ``csrc/data/store.h`` has the format.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from placket import _C
from placket.data.columns import Ints, Labels, Texts
from placket.data.dataset import (
    SPLITS,
    WHOLE_IMAGE,
    Compositions,
    Dataset,
    DatasetError,
    Problem,
    Split,
)
from placket.schema import AttributeSchema

__all__ = ["StoreDataset", "is_store", "pack", "read_image"]

_MAGIC = b"placket\n"
_KINDS = {"apply": _C.StoreKind.UPRIGHT_PIXELS, "ignore": _C.StoreKind.STORED_PIXELS}
_T = TypeVar("_T")

# Columns of a split that are arrays, and those that are strings.
_ARRAYS = (
    "boxes",
    "queries",
    "candidates",
    "identities",
    "domains",
    "query_images",
    "gallery_images",
    "sequences",
)
_LABELS = ("begin", "attribute", "value")
_COMPOSITIONS = ("reference", "target", "begin", "category", "subset", "groups")


def is_store(path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins as a store does."""
    with open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def pack(
    data: Dataset,
    path: str | os.PathLike[str],
    *,
    size: int | None = None,
    orientation: Literal["apply", "ignore"] = "apply",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> StoreDataset:
    """Write a data set into one file and open it.

    Masks stay behind: a packed set has no split of regions (``Dataset.region_split``).

    ``<path>.partial`` is written and renamed when it is whole. Where a call was cut off, the next one with
    the same images goes on after the last whole image. An image that several splits list is there once.

    Args:
        data: what to pack.
        path: the new file.
        size: pack decoded pixels, the short side of a picture brought to this where it is longer, boxes and
            regions with it; None packs the files as they are, from which models get the very same inputs.
        orientation: of decoded pixels, as ``Preprocess`` will want it.
        threads: that read and decode.
        progress: called with the images that are packed and all there are.

    Raises:
        DatasetError: something in the lists is wrong.
        RuntimeError: an image cannot be read, or the file not be written; the text names file and cause.
        ValueError: ``size`` is not positive.
    """
    if size is not None and size < 1:
        raise ValueError(f"pack: size must be positive, got {size}")
    splits = [data.split(name) for name in data.splits]
    if any(split.store is not None for split in splits):
        raise DatasetError(f"{data.place}: data set must be loose files to be packed, got a store")
    paths = [split.paths for split in splits]
    places: dict[str, int] = {}
    for image in itertools.chain.from_iterable(paths):
        places.setdefault(image, len(places))
    kind = _C.StoreKind.FILES if size is None else _KINDS[orientation]
    writer = _C.StoreWriter(os.fspath(path), kind, _fingerprint(list(places), size, kind))
    todo = list(places)[len(writer) :]
    with ThreadPoolExecutor(threads or os.cpu_count()) as workers:
        if size is None:
            for file in _ahead(workers, _C.read_file, todo):
                writer.append_file(file)
                _tell(progress, len(writer), len(places))
        else:
            shrink = functools.partial(_C.shrink_file, size=size, upright=orientation == "apply")
            for pixels, before in _ahead(workers, shrink, todo):
                writer.append_pixels(pixels, before)
                _tell(progress, len(writer), len(places))
    columns: dict[str, NDArray[Any]] = {}
    for split, images in zip(splits, paths, strict=True):
        numbers = np.array([places[image] for image in images], dtype=np.int64)
        sizes = writer.sizes[numbers] if size is not None else None
        _put_split(columns, data, split, numbers, sizes)
    header = {
        "schema": data.schema.to_dict(),
        "splits": list(data.splits),
        "shared_images": data.shared_images,
        "packed_from": str(data.place),
    }
    columns["header"] = _bytes(json.dumps(header))
    buffer = io.BytesIO()
    np.savez(buffer, **columns)  # type: ignore[arg-type]
    writer.finish(buffer.getvalue())
    return StoreDataset(path)


class StoreDataset(Dataset):
    """A data set that ``pack`` wrote."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map the file; its sizes, places, the checksums of its lists and their numbers are checked.

        Raises:
            DatasetError: it is no store, or cut off, or damaged.
        """
        try:
            self.store = _C.Store(os.fspath(path))
        except (RuntimeError, OSError) as error:
            raise DatasetError(str(error)) from None
        try:
            self._columns = dict(np.load(io.BytesIO(self.store.metadata), allow_pickle=False))
            header = json.loads(self._columns["header"].tobytes())
            schema = AttributeSchema.from_dict(header["schema"])
            super().__init__(Path(path), schema, tuple(header["splits"]))
            self.shared_images = bool(header["shared_images"])
            for name in self.splits:
                _check(self, name)
        except Exception as error:  # the checksums are right, so another program than `pack` wrote them
            raise DatasetError(f"{path}: store must hold the lists of a data set, got {error!r}") from None

    def inspect(self, name: str) -> tuple[Split, list[Problem]]:
        """Read a split, and tell which of its images are not as they were packed."""
        split, problems = super().inspect(name)
        assert split.places is not None
        for image, place in enumerate(split.places.tolist()):
            if not self.store.is_intact(place):
                message = (
                    f"image {split.filenames[image]} must have the checksum it was packed with, got another"
                )
                problems.append(Problem("damaged", str(self.place), None, message))
        return split, problems

    def _read(self, name: str) -> tuple[Split, list[Problem]]:
        filenames = self._texts(f"{name}/filenames")
        assert filenames is not None
        arrays = {column: self._columns.get(f"{name}/{column}") for column in _ARRAYS}
        begin, attribute, value = (self._columns[f"{name}/labels/{column}"] for column in _LABELS)
        split = Split(
            name=name,
            root=self.root,
            schema=self.schema,
            images=len(filenames),
            filenames=filenames,
            labels=Labels(begin, attribute, value, self.schema.value_counts),
            source=str(self.place),
            lines=np.zeros(len(filenames), dtype=np.int32),
            store=self.store,
            places=self._columns[f"{name}/places"],
            **{column: array for column, array in arrays.items() if array is not None},
        )
        return split, []

    def _read_regions(self, split: Split, problems: list[Problem]) -> Ints | None:
        return self._columns.get(f"{split.name}/regions")

    def _read_captions(self, split: Split, problems: list[Problem]) -> Texts | None:
        return self._texts(f"{split.name}/captions")

    def _read_compositions(self, split: Split, problems: list[Problem]) -> Compositions | None:
        captions = self._texts(f"{split.name}/compositions/captions")
        if captions is None:
            return None
        arrays = {c: self._columns.get(f"{split.name}/compositions/{c}") for c in _COMPOSITIONS}
        return Compositions(captions=captions, **{c: a for c, a in arrays.items() if a is not None})

    def _texts(self, key: str) -> Texts | None:
        if f"{key}/ends" not in self._columns:
            return None
        return Texts.of(_C.TextColumn.of(self._columns[f"{key}/bytes"], self._columns[f"{key}/ends"]))


def _check(data: StoreDataset, name: str) -> None:
    """Raise ValueError where a column of a split is not what its description says."""
    split, regions, compositions = data.split(name), data.regions(name), data.compositions(name)
    images, captions = len(split), data.captions(name)
    attributes, counts = len(split.schema), np.array(split.schema.value_counts)

    def check(good: bool | np.bool_, column: str) -> None:
        if not good:
            raise ValueError(f"{name}/{column} must be as placket.data.pack writes it, got another")

    def check_numbers(column: str, numbers: Ints | None, end: int | NDArray[Any], *shape: int) -> None:
        if numbers is not None:
            check(numbers.dtype.kind in "iu" and numbers.shape[1:] == shape, column)
            check(np.all((numbers >= 0) & (numbers < end)), column)

    def check_boxes(column: str, boxes: Ints) -> None:
        check(boxes.dtype.kind in "iu" and boxes.shape[1:] == (4,), column)
        check(np.all(boxes >= 0) and np.all(boxes[:, :2] < boxes[:, 2:]), column)

    check(name in SPLITS and images > 0, "filenames")
    check(captions is None or len(captions) == images, "captions")
    labels = split.labels
    check_numbers("labels/begin", labels.begin, len(labels.value) + 1)
    check_numbers("labels/attribute", labels.attribute, attributes)
    check(len(labels.value) == len(labels.attribute), "labels/value")
    check_numbers("labels/value", labels.value, counts[labels.attribute])
    labels.to_native()  # checks that begin rises to their number
    check(len(labels) == images, "labels/begin")
    check_numbers("places", split.places, len(data.store))
    if split.boxes is not None:
        check_boxes("boxes", split.boxes)
    split.image_list()  # checks that there is a place and a box for each
    for column in ("queries", "candidates"):
        triples = getattr(split, column)
        check_numbers(column, triples, max(images, attributes, *counts), 3)
        check_numbers(column, triples[:, :2], np.array([images, attributes]), 2)
        check_numbers(column, triples[:, 2], counts[triples[:, 1]])
    for column, end in (("identities", 2**31), ("domains", 2), ("sequences", 2**31)):
        numbers = getattr(split, column)
        check_numbers(column, None if numbers is None else numbers + 1, end + 1)  # -1 is for none
        check(numbers is None or len(numbers) == images, column)
    check_numbers("query_images", split.query_images, images)
    check_numbers("gallery_images", split.gallery_images, images)
    if regions is not None:
        check_numbers("regions", regions[:, :2], np.array([images, attributes]), 2)
        check_boxes("regions", regions[:, 2:])
    if compositions is not None:
        count, begin = len(compositions), compositions.begin
        check_numbers("compositions/reference", compositions.reference, images)
        check_numbers("compositions/target", compositions.target + 1, images + 1)  # -1 is for none
        check_numbers("compositions/begin", begin, len(compositions.captions) + 1)
        rises = len(begin) == count + 1 and begin[0] == 0 and np.all(begin[1:] >= begin[:-1])
        check(rises and begin[-1] == len(compositions.captions), "compositions/begin")
        check(len(compositions.target) == count, "compositions/target")
        for column in ("category", "subset"):
            numbers = getattr(compositions, column)
            check(numbers is None or (numbers.dtype.kind in "iu" and len(numbers) == count), column)
        groups = compositions.groups
        check_numbers("compositions/groups", None if groups is None else groups + 1, 2**31)  # -1 is for none
        check(groups is None or len(groups) == images, "compositions/groups")


def _put_split(
    columns: dict[str, NDArray[Any]], data: Dataset, split: Split, places: Ints, sizes: Ints | None
) -> None:
    """Put the columns of a split beside those of others; with ``sizes`` of the pixels, boxes fit those."""
    scale = _Scale(sizes)
    columns[f"{split.name}/places"] = places
    for column in _ARRAYS:
        array = getattr(split, column)
        if array is not None:
            columns[f"{split.name}/{column}"] = array
    if split.boxes is not None:
        whole = (split.boxes == WHOLE_IMAGE).all(axis=1, keepdims=True)
        scaled = scale(np.arange(len(split)), split.boxes)
        columns[f"{split.name}/boxes"] = np.where(whole, split.boxes, scaled)
    for column in _LABELS:
        columns[f"{split.name}/labels/{column}"] = getattr(split.labels, column)
    regions = data.regions(split.name)
    if regions is not None:
        scaled = np.concatenate([regions[:, :2], scale(regions[:, 0], regions[:, 2:])], axis=1)
        columns[f"{split.name}/regions"] = scaled
    texts = {"filenames": split.filenames, "captions": data.captions(split.name)}
    compositions = data.compositions(split.name)
    if compositions is not None:
        texts["compositions/captions"] = compositions.captions
        for column in _COMPOSITIONS:
            array = getattr(compositions, column)
            if array is not None:
                columns[f"{split.name}/compositions/{column}"] = array
    for name, strings in texts.items():
        if strings is not None:
            columns[f"{split.name}/{name}/bytes"] = strings.native.bytes
            columns[f"{split.name}/{name}/ends"] = strings.native.ends


def read_image(path: str | os.PathLike[str], upright: bool = True) -> NDArray[np.uint8]:
    """Return the pixels of an image file, or of an image in a store by ``<store>/<filename>``.

    Args:
        path: as ``Split.paths`` gives it.
        upright: apply the EXIF orientation; a store of pixels has them as they were packed.

    Returns:
        [height, width, 3] uint8.

    Raises:
        RuntimeError: it cannot be read; the text names file and cause.
    """
    path = Path(path)
    store = next((parent for parent in path.parents if parent.is_file()), None)
    if store is None:
        return _C.decode_file(os.fspath(path), upright)
    kind, images, places = _index(store, store.stat().st_mtime_ns)
    image = places.get(path.relative_to(store).as_posix())
    if image is None:
        raise RuntimeError(f"{path}: {store} must hold the image, got none of this name")
    if kind != _C.StoreKind.FILES:
        upright = kind == _C.StoreKind.UPRIGHT_PIXELS
    return images.decode(image, upright)


@functools.lru_cache(maxsize=4)
def _index(path: Path, _time: int) -> tuple[_C.StoreKind, _C.ImageList, dict[str, int]]:
    """What a store holds, all its images, and where each name is."""
    data = StoreDataset(path)
    filenames = Texts(itertools.chain.from_iterable(data.split(name).filenames for name in data.splits))
    records = np.concatenate([data.split(name).places for name in data.splits])
    images = _C.ImageList(filenames.native, root=os.fspath(path), store=data.store, records=records.tolist())
    return data.store.kind, images, {filename: image for image, filename in enumerate(filenames)}


class _Scale:
    """Brings boxes to pictures that were made smaller; their edges are rounded outward."""

    def __init__(self, sizes: Ints | None) -> None:
        self.sizes = sizes

    def __call__(self, images: Ints, boxes: Ints) -> Ints:
        if self.sizes is None:
            return boxes
        height, width, source_height, source_width = self.sizes[images].T
        now, before = np.stack([width, height], 1), np.stack([source_width, source_height], 1)
        low = boxes[:, :2] * now // before
        high = -(-boxes[:, 2:] * now // before)
        return np.concatenate([low, high], axis=1).astype(np.int32)


def _fingerprint(paths: Sequence[str], size: int | None, kind: _C.StoreKind) -> bytes:
    """Of all that the records depend on: the files' names, sizes and times, and how they are packed."""
    digest = hashlib.blake2b(f"{size} {kind}".encode(), digest_size=16)
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise RuntimeError(f"{path}: {error.strerror}") from None
        digest.update(f"\n{path} {status.st_size} {status.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return digest.digest()


def _ahead(workers: ThreadPoolExecutor, work: Callable[[str], _T], paths: Sequence[str]) -> Iterator[_T]:
    """Yield the work's results in order, a bounded number of them ahead."""
    waiting: deque[Future[_T]] = deque()
    try:
        for path in paths:
            waiting.append(workers.submit(work, path))
            if len(waiting) > 64:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _tell(progress: Callable[[int, int], None] | None, done: int, count: int) -> None:
    if progress is not None:
        progress(done, count)


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), dtype=np.uint8)
