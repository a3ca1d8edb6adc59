"""Regions of images: their masks, and the rows of a split that they are."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from placket import _C
from placket.data.columns import Ints, Labels, Masks, Texts
from placket.data.dataset import SPLITS, Split, divide, no_triples

__all__ = ["read_mask", "region_rows"]


def region_rows(split: Split, photos: Ints, boxes: Ints, labels: Labels, masks: Masks | None) -> Split:
    """Return the split whose rows are regions of another's images.

    Queries and candidates are made as for a table (``TableLayout``), by the file, so that all regions of a
    photo ask or all answer.

    Args:
        split: the images.
        photos: ``[n]`` the image of each region.
        boxes: ``[n, 4]`` x0 y0 x1 y1.
        labels: of the n regions.
        masks: of the n regions.
    """
    filenames = Texts(split.filenames[photo] for photo in photos.tolist())
    queries, candidates = no_triples(), no_triples()
    if split.name != "train":
        queries, candidates = divide(filenames, labels)
    return Split(
        name=split.name,
        root=split.root,
        schema=split.schema,
        images=len(photos),
        filenames=filenames,
        labels=labels,
        boxes=boxes,
        queries=queries,
        candidates=candidates,
        # Numbers of their own for the photos of each split, without a look at the others.
        identities=photos.astype(np.int32) * len(SPLITS) + SPLITS.index(split.name),
        source=split.source,
        lines=np.array([split.line(photo) or 0 for photo in photos.tolist()], dtype=np.int32),
        masks=masks,
        photos=photos,
    )


def read_mask(
    path: str | os.PathLike[str], value: int | None = None, upright: bool = True
) -> NDArray[np.bool_]:
    """Return which pixels of its image a mask shows, as ``placket.embed_image`` takes it.

    Args:
        path: of a PNG of one grey channel of 8 bits, of its image's size.
        value: of the pixels that are shown; None: of all that are not 0.
        upright: apply the EXIF orientation.

    Returns:
        [height, width].

    Raises:
        RuntimeError: the mask cannot be read; the text names file and cause.
    """
    pixels = _C.decode_mask(os.fspath(path), upright)
    return np.asarray(pixels != 0 if value is None else pixels == value)
