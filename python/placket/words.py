"""What a model with words makes of whole splits: scores of values, composed queries, a trained composition.

A composition learns what a text does to an image from features that are computed once::

    model = placket.load("runs/words/best")
    data = placket.data.open("data/hm.yaml")
    train_composition(model, data, Composition("agcn", model.embedding_dim))
    model.save("runs/composed")

``placket.evaluate(model, data, protocol="composed-recall/v1")`` then measures it, and an index of the model
is searched by photograph and text.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from placket import _C
from placket.composed import CachedFeatures, FitConfig, Triplets, digest_of, fit
from placket.data import Compositions, Dataset, Loader, Split
from placket.data.compositions import joined_captions
from placket.nn import Composition, RafClip
from placket.nn.model import Views

__all__ = [
    "ComposedSplit",
    "compose_split",
    "composed_queries",
    "image_features",
    "score_values",
    "text_features",
    "train_composition",
]

_ORDERS = 4  # texts of a query of several sentences, one of which is drawn for each epoch


def score_values(
    model: RafClip, split: Split, *, batch: int = 64, threads: int = 2, bfloat16: bool = False
) -> Tensor:
    """Return how much each image of a split, or region, looks like the words of each value.

    Returns:
        ``[N, V]`` float32 on the CPU, V values of all attributes in order: ``RafClip.score_values`` of the
        views that the model takes.

    Raises:
        RuntimeError: an image cannot be read.
    """
    device = model.logit_scale.device
    views: Views = "crop" if model.views == "both" and split.masks is None else model.views
    parts = []
    with _evaluating(model, bfloat16):
        for loaded in _batches(model, split, batch, threads, views):
            segmented = loaded.segmented.to(device) if views == "both" else None
            parts.append(model.score_values(loaded.images.to(device), segmented).float().cpu())
    return torch.cat(parts)


class ComposedSplit(NamedTuple):
    """Embeddings that composed retrieval ranks, float32 on the CPU, L2-normalised."""

    queries: Tensor  #: ``[m, D]``, zero where the reference is none
    images: Tensor  #: ``[N, D]``


def compose_split(
    model: RafClip,
    split: Split,
    reference: Tensor,
    texts: Sequence[str],
    *,
    batch: int = 64,
    threads: int = 2,
    bfloat16: bool = False,
) -> ComposedSplit:
    """Embed every image of a split once, and compose queries on the way.

    Args:
        reference: ``[m]`` int64, the image of each query, -1 for none.
        texts: m of them.
        batch: images at a time.

    Raises:
        RuntimeError: an image cannot be read.
    """
    device = model.logit_scale.device
    distinct, rows = _distinct([texts])
    words = text_features(model, distinct, tokens=model.reads_tokens)
    queries = torch.zeros(len(reference), model.embedding_dim)
    images, done = [], 0
    with _evaluating(model, bfloat16):
        for loaded in _batches(model, split, batch, threads, "crop"):
            embedding, tokens = _embedded(model, loaded.images.to(device))
            asked = torch.nonzero((reference >= done) & (reference < done + len(embedding))).squeeze(1)
            for some in asked.split(batch):
                own = (reference[some] - done).to(device)
                text, word, mask = words.take(rows[some, 0], device)
                of_image = None if tokens is None else tokens[own]
                found = model.composer(embedding[own], text, of_image, word, mask)
                queries[some] = found.query.float().cpu()
            images.append(F.normalize(embedding.float(), dim=1).cpu())
            done += len(embedding)
    return ComposedSplit(queries, torch.cat(images))


def image_features(
    model: RafClip,
    split: Split,
    *,
    path: str | os.PathLike[str] | None = None,
    batch: int = 64,
    threads: int = 2,
    bfloat16: bool = False,
) -> CachedFeatures:
    """Embed every image of a split, as its crop, for the model's composition to learn on.

    Args:
        path: of a file that keeps the features. One that is there is read; without a path they are kept in
            memory.
        batch, threads, bfloat16: of the pass through the tower.

    Returns:
        Embeddings in float32; where the composition reads tokens, embeddings and positions in bfloat16.

    Raises:
        ValueError: the file is of other weights or images.
        RuntimeError: an image cannot be read.
    """
    names = "\n".join(split.filenames).encode("utf-8", "surrogateescape")
    items = (
        f"{split.name} tokens={model.reads_tokens} bfloat16={bfloat16} {hashlib.sha256(names).hexdigest()}"
    )
    weights = digest_of(model.visual, model.image, repr(model.preprocess))

    def parts() -> Iterator[CachedFeatures]:
        with _evaluating(model, bfloat16):
            for loaded in _batches(model, split, batch, threads, "crop"):
                embedding, tokens = _embedded(model, loaded.images.to(model.logit_scale.device))
                if tokens is None:
                    yield CachedFeatures(embedding.float().cpu())
                else:
                    yield CachedFeatures(embedding.bfloat16().cpu(), tokens.bfloat16().cpu())

    if path is not None and Path(path).exists():
        return CachedFeatures.open(path, model=weights, items=items)
    if path is not None:
        return CachedFeatures.write(path, parts(), count=len(split), model=weights, items=items)
    made = list(parts())
    positions = [part.tokens for part in made if part.tokens is not None]
    return CachedFeatures(
        torch.cat([part.embedding for part in made]), torch.cat(positions) if positions else None
    )


def text_features(
    model: RafClip, texts: Sequence[str], *, tokens: bool = False, batch: int = 256
) -> CachedFeatures:
    """Embed texts for compositions in float32, with their words where ``tokens``."""
    parts = []
    with _evaluating(model, False):
        # All at once: rows of ids are as long as the longest.
        ids = model.text_ids(texts)
        for some in ids.split(batch):
            out, mask = model.text_words(some)
            parts.append((out.embedding.float().cpu(), out.tokens.float().cpu(), mask.cpu()))
    embedding, words, mask = (torch.cat(column) for column in zip(*parts, strict=True))
    return CachedFeatures(embedding, words, mask) if tokens else CachedFeatures(embedding)


def train_composition(
    model: RafClip,
    data: Dataset,
    composition: Composition,
    config: FitConfig | None = None,
    *,
    split: str = "train",
    path: str | os.PathLike[str] | None = None,
    batch: int = 64,
    threads: int = 2,
    bfloat16: bool = False,
    report: Callable[[int, float], None] | None = None,
) -> None:
    """Train a composition on a data set's composed queries, the towers as they are; the model keeps it.

    Of a query with several sentences, one of four texts is drawn for each epoch, see ``joined_captions``.

    Args:
        model: whose features it learns on, and which composes by it from now on.
        data: with composed queries (``Dataset.compositions``).
        composition: of the width of the model's embedding.
        config: how it is trained.
        split: to learn from.
        path: of a file that keeps the features of the images, see ``image_features``.
        batch, threads, bfloat16: of the pass through the towers.
        report: is called after each epoch with its number, from 1, and its mean loss.

    Raises:
        ValueError: the data have no composed queries, or the composition has nothing to train or another
            width.
        RuntimeError: an image cannot be read.
    """
    config = FitConfig() if config is None else config
    compositions = composed_queries("compose", data, split)
    ends = np.stack([compositions.reference, compositions.target]).astype(np.int64)
    known = np.flatnonzero((ends >= 0).all(axis=0))
    if not len(known):
        raise ValueError(f"compose: targets must be known, got '{split}' of {data.root} with all withheld")
    several = int(np.diff(compositions.begin).max()) > 1
    said = [
        joined_captions(compositions, seed=config.seed if several else None, epoch=order)
        for order in range(_ORDERS if several else 1)
    ]
    texts, rows = _distinct(said)
    model.with_composition(composition)
    images = image_features(
        model, data.split(split), path=path, batch=batch, threads=threads, bfloat16=bfloat16
    )
    words = text_features(model, texts, tokens=model.reads_tokens)
    reference, target = torch.from_numpy(ends[:, known])
    fit(composition, images, words, Triplets(reference, rows[known], target), config, report)


def composed_queries(caller: str, data: Dataset, split: str) -> Compositions:
    """Return the composed queries of a split.

    Raises:
        ValueError: there are none; ``caller`` opens the sentence.
    """
    compositions = data.compositions(split)
    if compositions is None or not len(compositions):
        raise ValueError(f"{caller}: data must have composed queries, got '{split}' of {data.root} without")
    return compositions


def _embedded(model: RafClip, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return embeddings ``[B, D]`` and, for a composition that reads them, positions ``[B, P, D]``."""
    if not model.reads_tokens:
        return model.encode_image(images), None
    out = model.image_tokens(images)
    return out.embedding, out.tokens[:, 1:]


def _distinct(columns: Sequence[Sequence[str]]) -> tuple[list[str], Tensor]:
    """Return the texts of columns, each once, and where they are, ``[m, columns]``."""
    places: dict[str, int] = {}
    rows = [[places.setdefault(text, len(places)) for text in column] for column in columns]
    return list(places), torch.tensor(rows).T.contiguous()


def _batches(model: RafClip, split: Split, batch: int, threads: int, views: Views) -> Iterator[_C.Batch]:
    """Return the images of a split in order, as the model takes them."""
    yield from Loader(
        split,
        batch=batch,
        shuffle=False,
        drop_last=False,
        preprocess=_C.Preprocess(**model.preprocess),
        views=views,
        threads=threads,
    )


@contextmanager
def _evaluating(model: RafClip, bfloat16: bool) -> Iterator[None]:
    """Put a model into evaluation mode without gradients, and back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(model.logit_scale.device.type, torch.bfloat16, enabled=bfloat16):
            yield
    finally:
        model.train(training)
