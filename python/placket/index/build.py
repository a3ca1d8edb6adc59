"""From the images of a data set to an index that can be searched by photograph."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from placket.data import Split
from placket.evaluate import embed_image, embed_pairs
from placket.index.attribute_index import AttributeIndex, Hit
from placket.models import load
from placket.nn import Rpf

__all__ = ["build", "search_image"]


def build(
    model: Rpf,
    split: Split,
    directory: str | os.PathLike[str],
    *,
    images: ArrayLike | None = None,
    engine: str = "flat",
) -> AttributeIndex:
    """Embed images under every attribute, add them to a new index, and save it with the model.

    The ids are the file names in the data set; the metadata are ``path`` and ``labels`` (attribute to its
    values).

    Args:
        model: whose attributes become the spaces.
        split: where the images are.
        directory: of the index; the model goes to ``<directory>/model``.
        images: ids ``[n]`` of those to add; all of the split by default.
        engine: see ``AttributeIndex.create``.

    Raises:
        RuntimeError: an image cannot be read.
    """
    rows = np.arange(len(split)) if images is None else np.asarray(images, dtype=np.int64)
    names = model.schema.names
    index = AttributeIndex.create(directory, spaces=dict.fromkeys(names, model.embedding_dim), engine=engine)
    pairs = np.repeat(rows, len(names)), np.tile(np.arange(len(names)), len(rows))
    embeddings = embed_pairs(model, split, *pairs).unflatten(0, (len(rows), len(names))).numpy()
    records = list(split.records)
    paths = split.image_list()
    index.add(
        [split.filenames[int(row)] for row in rows],
        {name: embeddings[:, i] for i, name in enumerate(names)},
        metadata=[{"path": paths.path(int(row)), "labels": records[row].labels} for row in rows],
    )
    model.save(index.path / "model")
    index.save()
    return index


def search_image(
    index: AttributeIndex,
    image: str | os.PathLike[str],
    weights: Mapping[str, float] | Sequence[str] | None = None,
    *,
    box: Sequence[int] | None = None,
    k: int = 10,
    model: Rpf | None = None,
) -> list[Hit]:
    """Search an index that ``build`` made by a photograph.

    Args:
        index: what to search.
        image: path of the file.
        weights: attributes in which the hits shall be alike, with or without weights; all by default.
        box: x0, y0, x1, y1 of the garment in pixels, x1 and y1 exclusive; the whole image without one.
        k: hits at most.
        model: the one that the index was built with; read from its folder where None.

    Raises:
        ValueError: an attribute is not of the model.
        RuntimeError: the image cannot be read; the text names file and cause.
    """
    model = load(index.path / "model") if model is None else model
    wanted = model.schema.names if weights is None else weights
    weighted = dict(wanted) if isinstance(wanted, Mapping) else dict.fromkeys(wanted, 1.0)
    names = [model.schema.names[i] for i in model.schema.indices(weighted)]
    embeddings = embed_image(model, image, names, box).numpy()
    return index.search(
        dict(zip(names, embeddings, strict=True)), dict(zip(names, weighted.values(), strict=True)), k=k
    )
