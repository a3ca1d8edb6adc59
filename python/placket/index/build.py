"""From the images of a data set to an index that can be searched by photograph."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray

from placket.data import Split
from placket.evaluate import classify_split, embed_image, embed_pairs, mean_direction, prepare_image
from placket.extension import extends
from placket.index.attribute_index import AttributeIndex, Hit
from placket.index.engines import read_manifest
from placket.index.model import check_model, embeds_flipped, keep_model, load_model, replace_model
from placket.index.where import Expression
from placket.nn import Model, RafClip
from placket.nn.raf_clip import WHOLE

__all__ = ["add_images", "build", "extend", "search_image", "search_text"]

_DOMAINS = ("shop", "consumer")


def build(
    model: Model,
    split: Split,
    directory: str | os.PathLike[str],
    *,
    images: ArrayLike | None = None,
    captions: Sequence[str] | None = None,
    engine: str = "flat",
    flip: bool = False,
    block: int = 1024,
    threads: int = 2,
    bfloat16: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> AttributeIndex:
    """Embed images in every space of a model and put them into an index, which keeps the model.

    Block by block, each of which is saved: memory for one block is enough, and what an interruption left is
    gone on with by the same call.

    Args:
        model: whose spaces the index has.
        split, images, captions, block, threads, bfloat16, progress: see ``add_images``.
        directory: of the index; the model goes to ``<directory>/model``.
        engine, options: see ``AttributeIndex.create``.
        flip: average the embeddings of each image and its mirror image (``embed_pairs``); the index keeps it,
            so that further images and queries are embedded in the same way.

    Returns:
        the index, open for writing.

    Raises:
        RuntimeError: an image cannot be read.
        ValueError: the directory holds an index of another model, engine or option.
    """
    folder = Path(directory)
    if (folder / "manifest.json").exists():
        found = read_manifest(folder)
        asked, there = {"engine": engine, **options}, {"engine": found["engine"], **found["options"]}
        for name, value in asked.items():
            if there.get(name) != value:
                raise ValueError(
                    f"build: {name} must be {there.get(name)!r} as in the index {folder}, got {value!r}"
                )
        index = AttributeIndex.load(folder)
    else:
        index = AttributeIndex.create(folder, spaces=model.spaces, engine=engine, **options)
    try:
        keep_model(model, folder, flip)
        add_images(
            index,
            split,
            images=images,
            captions=captions,
            block=block,
            threads=threads,
            bfloat16=bfloat16,
            progress=progress,
            model=model,
        )
    except BaseException:
        index.close()
        raise
    return index


def add_images(
    index: AttributeIndex,
    split: Split,
    *,
    images: ArrayLike | None = None,
    captions: Sequence[str] | None = None,
    block: int = 1024,
    threads: int = 2,
    bfloat16: bool = False,
    progress: Callable[[int, int], None] | None = None,
    model: Model | None = None,
) -> int:
    """Embed images and add them to an index that ``build`` made; those that are in it are left out.

    The ids are the file names in the data set; where one is listed again, with another box for example, it is
    ``name#2``, ``name#3`` in the order of the split. The metadata are ``path``, ``labels`` (attribute to list
    of values) and, where the data set has them, ``box`` (x0, y0, x1, y1 in pixels), ``product`` (a number),
    ``domain`` ("shop" or "consumer") and ``caption``; of a model that predicts also ``predicted`` (attribute
    to its most likely value) and ``probability`` (attribute to that value's, to four decimals), for which
    every image passes the model once more.

    Args:
        index: open for writing; saved after each block.
        split: where the images are.
        images: ids ``[n]`` of those to add; all of the split by default.
        captions: of all images of the split (``Dataset.captions``).
        block: images at a time.
        threads: that decode.
        bfloat16: autocast.
        progress: called with the images done and their number.
        model: the one that the index was built with; read from its folder where None.

    Returns:
        how many images were added.

    Raises:
        RuntimeError: an image cannot be read; the blocks before are in the index.
        ValueError: the index holds another image of the same file name, or has another model.
    """
    model = _own(index, model)
    spaces, flip = model.spaces, embeds_flipped(index.path)
    how: dict[str, Any] = {"flip": flip, "threads": threads, "bfloat16": bfloat16}
    every = np.arange(len(split)) if images is None else np.asarray(images, dtype=np.int64)
    paths, again, added = split.image_list(), _repeated(split.filenames), 0

    def id_of(row: int) -> str:
        return split.filenames[row] + again.get(row, "")

    for begin in range(0, len(every), block):
        part = every[begin : begin + block]
        known = index.contains([id_of(row) for row in part.tolist()])
        for row in part[known].tolist():
            held = index.get(id_of(row)).metadata.get("path")
            if held != paths.path(row):
                raise ValueError(
                    f"add_images: ids must be of one image each, got '{id_of(row)}' "
                    f"for {paths.path(row)} and {held}"
                )
        rows = part[~known]
        if len(rows):
            pairs = np.repeat(rows, len(spaces)), np.tile(np.arange(len(spaces)), len(rows))
            embedded = embed_pairs(model, split, *pairs, **how).view(len(rows), len(spaces), -1)
            vectors = embedded.numpy()
            predicted = _predictions(model, split, rows, embedded, how)
            index.add(
                [id_of(row) for row in rows.tolist()],
                {name: vectors[:, i, :dims] for i, (name, dims) in enumerate(spaces.items())},
                [
                    {**_described(split, row, paths.path(row), captions), **said}
                    for row, said in zip(rows.tolist(), predicted, strict=True)
                ],
            )
            index.save()
            added += len(rows)
        if progress is not None:
            progress(begin + len(part), len(every))
    return added


def extend(
    index: AttributeIndex,
    model: Model,
    split: Split,
    *,
    block: int = 1024,
    threads: int = 2,
    bfloat16: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Add the attributes that a model was extended by to an index that ``build`` made with the shorter model.

    The other spaces and the items' metadata, predictions too, are not touched. The model then takes the place
    of the one in the index's folder. What an interruption left is gone on with by the same call.

    Args:
        index: open for writing; saved after each space.
        model: what ``placket.extend`` and a training with ``new_attributes`` made of the index's own.
        split: all images of the index, numbered as they were added (``add_images``).
        block, threads, bfloat16, progress: see ``add_images``; progress counts images of all new attributes.

    Returns:
        names of the spaces that were added.

    Raises:
        ValueError: the model is no extension of the index's own, or an item of the index is not of the split;
            the index is as it was.
        RuntimeError: an image cannot be read.
    """
    if not extends(model, load_model(index.path)):
        raise ValueError(
            f"extend: model must be the one in {index.path} with further attributes, all else the same to "
            "the bit, got another; train with new_attributes what placket.extend returns"
        )
    ending = _repeated(split.filenames)
    ids = [name + ending.get(row, "") for row, name in enumerate(split.filenames)]
    rows = np.flatnonzero(index.contains(ids))
    if len(rows) != len(index):
        raise ValueError(
            f"extend: split must hold all {len(index)} images of the index, got {len(rows)} of them"
        )
    names = [name for name in model.spaces if name not in index.spaces]
    flip, done = embeds_flipped(index.path), 0

    def blocks(space: int, dims: int) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        nonlocal done
        for begin in range(0, len(rows), block):
            part = rows[begin : begin + block]
            wanted = np.full(len(part), space)
            vectors = embed_pairs(model, split, part, wanted, flip=flip, threads=threads, bfloat16=bfloat16)
            yield [ids[row] for row in part.tolist()], vectors[:, :dims].numpy()
            done += len(part)
            if progress is not None:
                progress(done, len(rows) * len(names))

    for name in names:
        space, dims = list(model.spaces).index(name), model.spaces[name]
        index.add_space(name, dims, blocks=blocks(space, dims))
        index.save()
    replace_model(model, index.path)
    return names


def search_image(
    index: AttributeIndex,
    image: str | os.PathLike[str],
    weights: Mapping[str, float] | Sequence[str] | None = None,
    *,
    text: str | None = None,
    box: Sequence[int] | None = None,
    mask: NDArray[np.bool_] | None = None,
    flip: bool | None = None,
    k: int = 10,
    where: str | Expression | None = None,
    group_by: str | None = None,
    model: Model | None = None,
) -> list[Hit]:
    """Search an index that ``build`` made by a photograph, or by one and a text that says what shall differ.

    Args:
        index: what to search.
        image: path of the file.
        weights: the model's spaces in which the hits shall be alike, with or without weights;
            ``Model.default_spaces`` by default, and none with a text.
        text: "the same in red", for a model with words (``RafClip.compose``), sought in its space "image".
            Each hit's ``scores`` then tell "by the image" and "by the text", its cosine to either alone, too.
        box, mask: where the garment is in the photograph, see ``embed_image``; nothing is detected.
        flip: average the embeddings of image and mirror image; None: as the index was built.
        k: hits at most.
        where, group_by: a condition on the metadata, and what of it makes groups of which the best hit is
            given, "product" for example; see ``AttributeIndex.search``.
        model: the one that the index was built with; read from its folder where None.

    Raises:
        ValueError: a space is not of the model, the model not the index's, or the condition none; box or mask
            do not fit image and model; no item has a value of ``group_by``.
        RuntimeError: the image cannot be read, or the mask is not of its size; the text says which.
    """
    model = _own(index, model)
    flip = embeds_flipped(index.path) if flip is None else flip
    weighted = model.space_weights([] if weights is None and text is not None else weights)
    queries, dims = {}, model.spaces
    if weighted:
        rows = embed_image(model, image, list(weighted), box, mask=mask, flip=flip).numpy()
        queries = {name: row[: dims[name]] for name, row in zip(weighted, rows, strict=True)}
    if text is None:
        return index.search(queries, weighted, k=k, where=where, group_by=group_by)
    words = _with_words(model)
    if WHOLE in weighted:
        raise ValueError(f"search: weights must not name '{WHOLE}' with a text, which is sought there")
    with torch.inference_mode():
        inputs = prepare_image(words, image, box, mask, flip)
        composed = mean_direction(
            [words.compose(each.images, [text], each.segmented).query for each in inputs]
        )
        by_image = mean_direction(
            [F.normalize(words.embed_views(each.images, each.segmented), dim=1) for each in inputs]
        )
        alone = {
            "by the image": by_image[0].cpu().numpy(),
            "by the text": words.embed_texts([text])[0].cpu().numpy(),
        }
    queries[WHOLE] = composed[0].cpu().numpy()
    hits = index.search(queries, {**weighted, WHOLE: 1.0}, k=k, where=where, group_by=group_by)
    return [
        dataclasses.replace(
            hit,
            scores={
                **hit.scores,
                **{name: float(index.get(hit.id).vectors[WHOLE] @ one) for name, one in alone.items()},
            },
        )
        for hit in hits
    ]


def search_text(
    index: AttributeIndex,
    text: str,
    *,
    k: int = 10,
    where: str | Expression | None = None,
    group_by: str | None = None,
    model: Model | None = None,
) -> list[Hit]:
    """Search an index that ``build`` made by words alone, in its space "image".

    Args:
        index: what to search.
        text: "a red dress with a round neckline".
        k, where, group_by, model: see ``search_image``.

    Raises:
        ValueError: the model has no words, is not the index's, or the condition is none.
    """
    words = _with_words(_own(index, model))
    with torch.inference_mode():
        query = words.embed_texts([text])[0].cpu().numpy()
    return index.search({WHOLE: query}, {WHOLE: 1.0}, k=k, where=where, group_by=group_by)


def _with_words(model: Model) -> RafClip:
    if not isinstance(model, RafClip):
        raise ValueError(f"search: text needs a model with words, raf_clip, got {model.name}")
    return model


def _repeated(filenames: Sequence[str]) -> dict[int, str]:
    """Return what the ids of images whose name was there before end in, by their numbers."""
    # Hashes, since a million names in a set are a hundred megabytes.
    hashes = np.fromiter(map(hash, filenames), np.int64, len(filenames))
    _, place, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    times: dict[str, int] = {}
    endings = {}
    for row in np.flatnonzero(counts[place] > 1).tolist():
        times[filenames[row]] = times.get(filenames[row], 0) + 1
        if times[filenames[row]] > 1:
            endings[row] = f"#{times[filenames[row]]}"
    return endings


def _own(index: AttributeIndex, model: Model | None) -> Model:
    if model is None:
        return load_model(index.path)
    check_model(model, index.path)
    return model


def _predictions(
    model: Model, split: Split, rows: NDArray[np.int64], embedded: torch.Tensor, how: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return what the metadata of images say of a model's predictions: nothing where it makes none."""
    if not model.predicts:
        return [{} for _ in rows]
    if model.predicts_by_embedding:
        with torch.no_grad():
            every = [model.probabilities_of(embedded[:, a], a).cpu() for a in range(len(model.schema))]
    else:
        every = classify_split(model, split, rows, **how)
    best = [probabilities.max(1) for probabilities in every]
    found = []
    for i in range(len(rows)):
        sure = [
            (attribute.name, attribute.values[int(top.indices[i])], round(float(top.values[i]), 4))
            for attribute, top in zip(model.schema.attributes, best, strict=True)
            if top.values[i] > 0
        ]
        found.append(
            {
                "predicted": {name: value for name, value, _ in sure},
                "probability": {name: share for name, _, share in sure},
            }
        )
    return found


def _described(split: Split, row: int, path: str, captions: Sequence[str] | None) -> dict[str, Any]:
    record = split.record(row)
    metadata: dict[str, Any] = {"path": path, "labels": record.labels}
    if record.box is not None:
        metadata["box"] = record.box
    if split.identities is not None and split.identities[row] >= 0:
        metadata["product"] = int(split.identities[row])
    if split.domains is not None:
        metadata["domain"] = _DOMAINS[int(split.domains[row])]
    if captions is not None and captions[row]:
        metadata["caption"] = captions[row]
    return metadata
