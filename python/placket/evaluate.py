"""Embeddings of whole splits, and evaluation by a named protocol."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from placket import _C
from placket.data import Dataset, Loader, Split, read_image
from placket.nn import Pictures, Rpf
from placket.protocols import PROTOCOLS, Result
from placket.train import is_native, native_system

__all__ = ["embed_image", "embed_pairs", "embed_split", "evaluate"]


def evaluate(
    model: Rpf,
    data: Dataset,
    split: str = "test",
    protocol: str = "asfr-map-all/v1",
    *,
    batch: int = 64,
    threads: int = 2,
    bfloat16: bool = False,
) -> Result:
    """Evaluate a model on a split's query and candidate lists.

    Every image of the lists is read once and passes each trunk once.

    Args:
        model: whose schema equals the data's.
        data: the data set.
        split: which has query and candidate lists.
        protocol: a name in ``placket.protocols.PROTOCOLS``.
        batch: images at a time.
        threads: that decode.
        bfloat16: autocast.

    Raises:
        ValueError: the schema or the protocol does not fit.
        RuntimeError: an image cannot be read.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"evaluate: protocol must be one of {', '.join(PROTOCOLS)}, got '{protocol}'")
    if data.schema != model.schema:
        raise ValueError(
            f"evaluate: data must have the model's attributes and values, {_counts(model.schema)}, "
            f"got {_counts(data.schema)}"
        )
    part = data.split(split)
    if not len(part.queries) or not len(part.candidates):
        raise ValueError(
            f"evaluate: split must have query and candidate lists, got '{split}' of {data.root} without"
        )
    pairs = np.unique(np.concatenate([part.queries[:, :2], part.candidates[:, :2]]), axis=0)
    rows = embed_pairs(model, part, pairs[:, 0], pairs[:, 1], batch=batch, threads=threads, bfloat16=bfloat16)
    keys = pairs[:, 0] * len(model.schema) + pairs[:, 1]  # sorted, as np.unique leaves them

    def embed(images: NDArray[np.int64], attribute: int) -> Tensor:
        return rows[torch.from_numpy(np.searchsorted(keys, images * len(model.schema) + attribute))]

    return PROTOCOLS[protocol](part.queries, part.candidates, embed, model.schema)


def embed_split(
    model: Rpf,
    split: Split,
    *,
    attributes: Sequence[str | int] | None = None,
    batch: int = 64,
    threads: int = 2,
    bfloat16: bool = False,
) -> Tensor:
    """Embed every image of a split under every attribute, or under some.

    Returns:
        ``[N, A, D]`` float32, L2-normalised, in the order of the split and of ``attributes``.

    Raises:
        RuntimeError: an image cannot be read.
    """
    ids = np.array(model.schema.indices(range(len(model.schema)) if attributes is None else attributes))
    images = np.repeat(np.arange(len(split)), len(ids))
    rows = embed_pairs(
        model, split, images, np.tile(ids, len(split)), batch=batch, threads=threads, bfloat16=bfloat16
    )
    return rows.view(len(split), len(ids), rows.shape[1])


@torch.inference_mode()
def embed_image(
    model: Rpf,
    image: str | os.PathLike[str],
    attributes: Sequence[str | int],
    box: Sequence[int] | None = None,
) -> Tensor:
    """Embed one photograph, preprocessed as in training.

    Args:
        image: path of the file, or of an image in a store.
        attributes: K names or ids.
        box: x0 y0 x1 y1 of the garment in pixels, x1 and y1 exclusive; the whole image without one.

    Returns:
        ``[K, D]`` float32, L2-normalised.

    Raises:
        RuntimeError: the image cannot be read; the text names file and cause.
    """
    preprocess = _C.Preprocess(**model.preprocess)
    picture = read_image(image, upright=preprocess.orientation == "apply")
    batch = _C.prepare_image(picture, box, preprocess)
    device = next(model.parameters()).device
    training = model.training
    embedding = model.eval().encode(batch.images.to(device), attributes, Pictures.of(batch, device))[0]
    model.train(training)
    return embedding.float().cpu()


def embed_pairs(
    model: Rpf,
    split: Split,
    images: NDArray[np.int64],
    attributes: NDArray[np.int64],
    *,
    batch: int = 64,
    threads: int = 2,
    bfloat16: bool = False,
) -> Tensor:
    """Embed images of a split, each under one attribute.

    Args:
        images: ``[V]`` ids of the split.
        attributes: ``[V]`` ids of the schema.

    Returns:
        ``[V, D]`` float32 on the CPU, L2-normalised.
    """
    if not is_native(model):
        return _embed_in_python(model, split, images, attributes, batch, threads, bfloat16)
    system = native_system(model)
    system.begin_encoding(["region", "patch"] if model.config.patch_trunk else ["region"])
    return _C.encode_rows(
        system,
        split.image_list(),
        images.tolist(),
        attributes.tolist(),
        preprocess=_C.Preprocess(**model.preprocess),
        batch=batch,
        threads=threads,
        bfloat16=bfloat16,
    )


@torch.no_grad()
def _embed_in_python(
    model: Rpf,
    split: Split,
    images: NDArray[np.int64],
    attributes: NDArray[np.int64],
    batch: int,
    threads: int,
    bfloat16: bool,
) -> Tensor:
    """The same for a trunk that is a module of the caller's."""
    device = next(model.parameters()).device
    loader = Loader(
        split,
        batch=batch,
        shuffle=False,
        drop_last=False,
        preprocess=_C.Preprocess(**model.preprocess),
        keep_pixels=bool(model.config.patch_trunk),
        threads=threads,
    )
    training = model.training
    model.eval()
    every = []
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        for part in loader:
            pictures = None
            if model.config.patch_trunk:
                pictures = Pictures.of(part, device)
            every.append(model.encode_all(part.images.to(device), pictures).float().cpu())
    model.train(training)
    return torch.cat(every)[torch.from_numpy(images), torch.from_numpy(attributes)]


def _counts(schema: object) -> str:
    attributes = getattr(schema, "attributes", ())
    return ", ".join(f"{attribute.name} ({len(attribute.values)})" for attribute in attributes)
