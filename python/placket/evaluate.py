"""Embeddings of whole splits, and evaluation by a named protocol."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from placket import _C
from placket.agreement import WEIGHTS, Labelled, centre_probabilities, class_agreement, class_means
from placket.data import Augment, Dataset, Loader, Split, Street2ShopDataset, Texts, read_image
from placket.data.columns import Ints, Labels, Masks
from placket.data.compositions import joined_captions
from placket.data.dataset import SPLITS
from placket.nn import AttributeNetwork, Modc, Model, Pictures, RafClip
from placket.nn.model import Views
from placket.protocols import (
    PROTOCOLS,
    Blocks,
    Embed,
    EmbedClass,
    Gallery,
    Photos,
    Reference,
    Rerank,
    Result,
    asfr_joint,
    asfr_map_all,
    asfr_multilabel,
    asfr_multilabel_class,
    c2s_topk,
    composed_recall,
    fashioniq_original,
    fashioniq_val,
    inshop_recall,
    recognition,
    recognition_targets,
    split_joint,
)
from placket.words import compose_split, composed_queries, score_values

__all__ = [
    "Ranking",
    "class_estimates",
    "classify_split",
    "embed_classes",
    "embed_image",
    "embed_pairs",
    "embed_split",
    "evaluate",
]

Integers = NDArray[np.int64]
Ranking = Literal["embedding", "agreement", "both"]
"""What ranks candidates: cosine of embeddings, whether two images are likely to have the same value
(``placket.agreement``), or the sum of the former and the weighted latter."""
T = TypeVar("T")


def evaluate(
    model: Model,
    data: Dataset,
    split: str = "test",
    protocol: str = "asfr-map-all/v1",
    *,
    attributes: Mapping[str, float] | Sequence[str] | None = None,
    gallery: Gallery = "all-shop",
    by_category: bool | None = None,
    regions: bool = False,
    reference: Reference = "kept",
    tune_region: Literal["overall", "per attribute"] | None = None,
    flip: bool = False,
    rerank: Rerank | None = None,
    ranking: Ranking = "embedding",
    class_weight: float | None = None,
    allow_missing: bool = False,
    batch: int = 64,
    threads: int = 2,
    bfloat16: bool = False,
) -> Result:
    """Evaluate a model on a split.

    Every image that the protocol needs is read once and passes each trunk once; with ``flip`` twice.

    ========================  ==============================================================================
    asfr-map-all/v1           the split's query and candidate lists; data and model have the same attributes
    asfr-multilabel/v1        the split's labels; the same
    asfr-multilabel-class/v1  the same, each query with its value, for a model with class embeddings
    c2s-topk/v1               query and gallery photos of two kinds, consumers' and shops'; ranked by the mean
                              cosine of the model's spaces
    inshop-recall/v1          query and gallery photos of one kind; ranked in the same way
    recognition/v1            the labels of the split and of "valid", which thresholds are chosen on, for a
                              model that scores values: RaF-CLIP by their words, others by class logits
    composed-recall/v1        the composed queries of the split, for a RaF-CLIP (``RafClip.compose``)
    fashioniq-original/v1     the same in FashionIQ's layout, on "valid"
    fashioniq-val/v1          the same
    ========================  ==============================================================================

    Args:
        model: whose embeddings are ranked.
        data: the data set.
        split: of it.
        protocol: a name in ``placket.protocols.PROTOCOLS``.
        attributes: for the products' protocols, the model's spaces in which photos are to be alike, or their
            weights in the mean; ``Model.default_spaces`` equally by default.
        gallery: of ``c2s-topk/v1``: the shop photos of all splits but "train", or those of the split alone.
        by_category: for the products' protocols, whether is sought within the query's value of the first
            attribute; None: for Street2Shop, where that is the convention.
        regions: of ``recognition/v1``, whether the rows are the split's regions or its images.
        reference: of ``composed-recall/v1``, whether a query's own image is a candidate: "kept" or "removed".
        tune_region: choose the weight of the region branch by ``asfr-map-all/v1`` on "valid", one for all
            attributes or one for each, instead of the model's own. Its images pass the trunks once.
        flip: average the embeddings of the image and its mirror image, see ``embed_pairs``.
        rerank: of the products' protocols, what changes the ranking after the search: "k-reciprocal" or
            "query-expansion", see ``c2s_topk``. Two runs and ``placket.protocols.compare`` tell its gain.
        ranking: of ``asfr-map-all/v1``, by embeddings, by class agreement, or by both. Class probabilities
            are those of the nearest class means of "train", whose images are embedded as they are, or the
            model's own (MODC's centres, M3-Net's class logits); which of them, and their weight, is chosen on
            "valid" for each attribute, and the result says what was.
        class_weight: of the class agreement in the ranking by "both", in place of the one chosen on "valid";
            or of the probability in ``asfr-multilabel-class/v1``, 1 by default, see
            ``asfr_multilabel_class``.
        allow_missing: leave out images whose file is not there; the result counts them and is named a subset.
        batch: images at a time.
        threads: that decode.
        bfloat16: autocast.

    Raises:
        ValueError: the schema, the protocol or an argument does not fit the data.
        RuntimeError: an image cannot be read.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"evaluate: protocol must be one of {', '.join(PROTOCOLS)}, got '{protocol}'")
    _check_ranking(protocol, ranking, class_weight, tune_region)
    embed = partial(embed_pairs, model, flip=flip, batch=batch, threads=threads, bfloat16=bfloat16)
    if tune_region is not None and protocol != "asfr-map-all/v1":
        raise ValueError(f"evaluate: tune_region must be None with {protocol}, got '{tune_region}'")
    if rerank is not None and protocol not in _OF_PRODUCTS:
        raise ValueError(f"evaluate: rerank must be None with {protocol}, got '{rerank}'")
    if protocol.startswith("asfr-"):
        if model.default_spaces != model.schema.names:
            raise ValueError(
                f"evaluate: {protocol} needs a model with a space for each attribute, got {model.name} with "
                f"{', '.join(model.spaces)}"
            )
        if attributes is not None:
            raise ValueError(f"evaluate: attributes must be None with {protocol}, got {attributes}")
        part = data.split(split).under(model.schema)
        if protocol == "asfr-multilabel/v1":
            return _multilabel(part, embed, allow_missing)
        if protocol == "asfr-multilabel-class/v1":
            if flip:
                raise ValueError(f"evaluate: flip must be False with {protocol}, got True")
            classes: EmbedClass = _EmbedClasses(model, part, batch, threads, bfloat16)
            rows, missing = _labels(part, allow_missing)
            return asfr_multilabel_class(
                rows,
                classes,
                part.schema,
                class_weight=1.0 if class_weight is None else class_weight,
                missing=missing,
            )
        if ranking != "embedding":
            estimate = partial(
                class_estimates, model, flip=flip, batch=batch, threads=threads, bfloat16=bfloat16
            )
            known = data.split("train").under(model.schema), data.split("valid").under(model.schema)
            weights = WEIGHTS if class_weight is None else (class_weight,)
            return _by_classes(part, *known, embed, estimate, ranking, weights, allow_missing)
        valid = None if tune_region is None else data.split("valid").under(model.schema)
        return _map_all(part, embed, valid, tune_region == "per attribute", allow_missing)
    if protocol in _OF_PRODUCTS:
        weights_of = model.space_weights(attributes)
        if not weights_of:
            raise ValueError("evaluate: attributes must name at least one, got none")
        numbers = model.space_numbers(weights_of)
        within = isinstance(data, Street2ShopDataset) if by_category is None else by_category
        return _products(
            data, split, protocol, weights_of, numbers, gallery, within, rerank, embed, allow_missing
        )
    if protocol == "recognition/v1":
        return _recognition(model, data, split, regions, flip, allow_missing, batch, threads, bfloat16)
    composing: dict[str, Callable[..., Result]] = {
        "composed-recall/v1": partial(composed_recall, reference=reference),
        "fashioniq-original/v1": fashioniq_original,
        "fashioniq-val/v1": fashioniq_val,
    }
    ranked = composing[protocol]
    return _composed(model, data, split, protocol, ranked, allow_missing, batch, threads, bfloat16)


_OF_PRODUCTS = ("c2s-topk/v1", "inshop-recall/v1")


def _check_ranking(
    protocol: str, ranking: Ranking, class_weight: float | None, tune_region: str | None
) -> None:
    if ranking not in get_args(Ranking):
        raise ValueError(f"evaluate: ranking must be one of {', '.join(get_args(Ranking))}, got '{ranking}'")
    if ranking != "embedding" and protocol != "asfr-map-all/v1":
        raise ValueError(f"evaluate: ranking must be 'embedding' with {protocol}, got '{ranking}'")
    if ranking != "embedding" and tune_region is not None:
        raise ValueError(f"evaluate: tune_region must be None with ranking '{ranking}', got '{tune_region}'")
    if class_weight is None:
        return
    if ranking != "both" and protocol != "asfr-multilabel-class/v1":
        raise ValueError(
            "evaluate: class_weight must be None but with ranking 'both' or asfr-multilabel-class/v1, "
            f"got {class_weight} with ranking '{ranking}' and {protocol}"
        )
    if not class_weight >= 0:
        raise ValueError(f"evaluate: class_weight must be at least 0, got {class_weight}")


def embed_split(
    model: Model,
    split: Split,
    *,
    attributes: Sequence[str | int] | None = None,
    flip: bool = False,
    batch: int = 64,
    threads: int = 2,
    bfloat16: bool = False,
) -> Tensor:
    """Embed every image of a split.

    Args:
        attributes: names or numbers of K of the model's spaces; ``Model.default_spaces`` by default.
        flip: as in ``embed_pairs``.

    Returns:
        ``[N, K, D]`` float32, L2-normalised, in the order of the split and of ``attributes``.

    Raises:
        RuntimeError: an image cannot be read.
        ValueError: there is no such space.
    """
    ids = np.array(model.space_numbers(attributes))
    images = np.repeat(np.arange(len(split)), len(ids))
    rows = embed_pairs(
        model,
        split,
        images,
        np.tile(ids, len(split)),
        flip=flip,
        batch=batch,
        threads=threads,
        bfloat16=bfloat16,
    )
    return rows.view(len(split), len(ids), rows.shape[1])


@torch.inference_mode()
def embed_image(
    model: Model,
    image: str | os.PathLike[str],
    attributes: Sequence[str | int] | None = None,
    box: Sequence[int] | None = None,
    *,
    mask: NDArray[np.bool_] | None = None,
    flip: bool = False,
) -> Tensor:
    """Embed one photograph, preprocessed as in training.

    Args:
        image: path of the file, or of an image in a store.
        attributes: names or numbers of K of the model's spaces; ``Model.default_spaces`` by default.
        box: x0 y0 x1 y1 of the garment in pixels, x1 and y1 exclusive, of which the part inside the image
            counts; without one the smallest around the mask, or the whole image.
        mask: ``[height, width]`` of the image, true where it shows the garment (``placket.data.read_mask``),
            for a model of segmented regions; without one such a model embeds the crop.
        flip: as in ``embed_pairs``.

    Returns:
        ``[K, D]`` float32, L2-normalised.

    Raises:
        RuntimeError: the image cannot be read, or the mask is not of its size; the text says which.
        ValueError: box and image do not overlap, the mask shows nothing in it, or the model takes no masks.
    """
    spaces = model.space_numbers(attributes)
    training = model.training
    model.eval()
    views = [encode(model, inputs, spaces)[0] for inputs in prepare_image(model, image, box, mask, flip)]
    model.train(training)
    return mean_direction(views, model.blocks).float().cpu()


class Inputs(NamedTuple):
    """What a model takes of N images, on its device."""

    images: Tensor
    pictures: Pictures | None
    """Where it ``needs_pictures``."""
    segmented: Tensor | None
    """Where its ``views`` are "both" and there are masks."""

    @staticmethod
    def of(model: Model, batch: _C.Batch) -> Inputs:
        device = next(model.parameters()).device
        return Inputs(
            batch.images.to(device),
            Pictures.of(batch, device) if model.needs_pictures else None,
            batch.segmented.to(device) if batch.segmented.numel() else None,
        )


def encode(model: Model, inputs: Inputs, spaces: Sequence[int]) -> Tensor:
    """Return the embeddings ``[N, K, D]`` of images in spaces given by number."""
    if inputs.segmented is None:
        return model.encode(inputs.images, spaces, inputs.pictures)
    assert isinstance(model, RafClip)
    return model.encode(inputs.images, spaces, inputs.pictures, inputs.segmented)


def prepare_image(
    model: Model,
    image: str | os.PathLike[str],
    box: Sequence[int] | None = None,
    mask: NDArray[np.bool_] | None = None,
    flip: bool = False,
) -> list[Inputs]:
    """Read one photograph as a model takes it; with ``flip`` its mirror image too. See ``embed_image``."""
    preprocess = _C.Preprocess(**model.preprocess)
    picture = read_image(image, upright=preprocess.orientation == "apply")
    if mask is not None:
        if model.views == "crop":
            raise ValueError(
                f"prepare_image: mask needs a model of segmented regions, views 'segmented' or 'both', got "
                f"{model.name} of crops"
            )
        if box is None:
            box = _around(mask, image)
        elif not mask[max(box[1], 0) : max(box[3], 0), max(box[0], 0) : max(box[2], 0)].any():
            raise ValueError(f"prepare_image: mask must show a pixel of the box in {image}, got none")
    views = [(picture, box, preprocess, mask)]
    if flip:
        # The picture is cut first, so that what stands at the odd pixel of a margin is what the loader has;
        # no fit cuts or pads it again.
        height, width, _ = picture.shape
        cut, _ = _C.frame(height, width, box, preprocess)
        own = None if mask is None else _mirrored(mask, cut)
        views.append((_mirrored(picture, cut), None, preprocess, own))
    every = []
    for each in views:
        batch = _C.prepare_image(*each)
        inputs = Inputs.of(model, batch)
        if inputs.segmented is not None and model.views == "segmented":
            inputs = inputs._replace(images=inputs.segmented, segmented=None)
        every.append(inputs)
    return every


def _around(mask: NDArray[np.bool_], image: str | os.PathLike[str]) -> list[int]:
    """Return the smallest box that holds a mask."""
    down, across = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(down):
        raise ValueError(f"prepare_image: mask must show a pixel of {image}, got none")
    return [int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1]


def _mirrored(pixels: NDArray[Any], part: Sequence[int]) -> NDArray[Any]:
    """Return the mirror image of a part ``x0 y0 x1 y1`` of a picture, zeros where it leaves the picture."""
    x0, y0, x1, y1 = part
    out = np.zeros((y1 - y0, x1 - x0, *pixels.shape[2:]), pixels.dtype)
    top, left = max(y0, 0), max(x0, 0)
    inside = pixels[top:y1, left:x1]
    out[top - y0 :, left - x0 :][: inside.shape[0], : inside.shape[1]] = inside
    return np.ascontiguousarray(out[:, ::-1])


def embed_pairs(
    model: Model,
    split: Split,
    images: NDArray[np.int64],
    attributes: NDArray[np.int64],
    *,
    flip: bool = False,
    batch: int = 64,
    threads: int = 2,
    bfloat16: bool = False,
) -> Tensor:
    """Embed images of a split, each under one attribute.

    Args:
        images: ``[V]`` ids of the split.
        attributes: ``[V]`` numbers of the model's spaces.
        flip: average each branch's unit embeddings of the image and of its mirror image, crops included, and
            normalise the mean again; the branches keep their weights in the dot product.

    Returns:
        ``[V, D]`` float32 on the CPU, L2-normalised.
    """
    if flip:
        plain = embed_pairs(model, split, images, attributes, batch=batch, threads=threads, bfloat16=bfloat16)
        mirrored = _embed_in_python(
            model, split, images, attributes, batch, threads, bfloat16, Augment(flip=1.0)
        )
        return mean_direction([plain, mirrored], model.blocks)
    if not model.is_native:
        return _embed_in_python(model, split, images, attributes, batch, threads, bfloat16)
    system = model.system()
    system.begin_encoding(list(model.branches))
    return _C.encode_rows(
        system,
        split.image_list(),
        images.tolist(),
        attributes.tolist(),
        preprocess=_C.Preprocess(**model.preprocess),
        views=_views(model, split),
        batch=batch,
        threads=threads,
        bfloat16=bfloat16,
    )


def _views(model: Model, split: Split) -> Views:
    """Return what of the images of a split a model embeds: without masks there are crops alone."""
    return "crop" if split.masks is None else model.views


def embed_classes(
    model: Model,
    split: Split,
    images: NDArray[np.int64],
    attribute: int,
    *,
    batch: int = 64,
    threads: int = 2,
    bfloat16: bool = False,
) -> tuple[Tensor, Tensor]:
    """Embed images of a split by each value of an attribute, with a model that has class embeddings.

    Args:
        images: ``[n]`` ids of the split.
        attribute: id of the schema, with V values.

    Returns:
        Embeddings ``[n, V, F]``, L2-normalised, and the probabilities ``[n, V]`` that an image carries a
        value, each by itself; float32 on the CPU.

    Raises:
        RuntimeError: an image cannot be read.
    """
    counts = model.schema.value_counts
    first = sum(counts[:attribute])
    own = slice(first, first + counts[attribute])

    def embed(inputs: Inputs) -> tuple[Tensor, Tensor]:
        out = model(inputs.images, attribute, inputs.pictures)
        rows = F.normalize(out.class_embedding[:, own].float(), dim=2)
        return rows.cpu(), out.class_logits[:, own].float().sigmoid().cpu()

    embeddings, probabilities = zip(
        *_in_python(model, split, images, embed, batch, threads, bfloat16), strict=True
    )
    return torch.cat(embeddings), torch.cat(probabilities)


def classify_split(
    model: Model,
    split: Split,
    images: NDArray[np.int64] | None = None,
    *,
    flip: bool = False,
    batch: int = 64,
    threads: int = 2,
    bfloat16: bool = False,
) -> list[Tensor]:
    """Estimate the value of each attribute of images of a split, with a model that predicts.

    Args:
        images: ``[N]`` ids of the split; all by default.
        flip: the mean of the probabilities of the image and of its mirror image.

    Returns:
        for each attribute ``[N, values]``, see ``Model.class_probabilities``; float32 on the CPU.

    Raises:
        ValueError: the model does not predict.
        RuntimeError: an image cannot be read.
    """
    if not model.predicts:
        raise ValueError(f"classify_split: model must predict attributes, got {model.name}")

    asked = np.arange(len(split)) if images is None else images
    every = range(len(model.schema))

    def predict(inputs: Inputs) -> list[Tensor]:
        if inputs.segmented is None:
            found = model.class_probabilities(inputs.images, every, inputs.pictures)
        else:
            assert isinstance(model, RafClip)
            found = model.class_probabilities(inputs.images, every, inputs.pictures, inputs.segmented)
        return [own.float().cpu() for own in found]

    def probabilities(augment: Augment | None) -> list[Tensor]:
        parts = _in_python(model, split, asked, predict, batch, threads, bfloat16, augment)
        return [torch.cat(own) for own in zip(*parts, strict=True)]

    plain = probabilities(None)
    if not flip:
        return plain
    mirrored = probabilities(Augment(flip=1.0))
    return [(one + other) / 2 for one, other in zip(plain, mirrored, strict=True)]


def class_estimates(
    model: Model,
    split: Split,
    embed: Embed,
    means: Sequence[Tensor],
    images: NDArray[np.int64] | None = None,
    *,
    flip: bool = False,
    batch: int = 64,
    threads: int = 2,
    bfloat16: bool = False,
) -> dict[str, Embed]:
    """Return what the class probabilities of a split may be, for ``placket.agreement.Labelled``.

    Args:
        model: whose own they are, where it has any: by the centres that it learned, a MODC's also by those it
            keeps online, an M3-Net's also by its class logits.
        split: the split.
        embed: its embeddings.
        means: of each attribute ``[values, D]``, see ``placket.agreement.class_means``.
        images: ids of the split that will be asked for, rising; all by default.
        flip: the mean of the logits' probabilities of the image and of its mirror image.

    Returns:
        by name: the nearest of the means at each temperature, of the model's centres, the class logits.

    Raises:
        RuntimeError: an image cannot be read.
    """
    found = centre_probabilities(embed, means)
    if isinstance(model, Modc):
        own = [model.centres(attribute) for attribute in split.schema.names]
        found |= centre_probabilities(embed, own, name="centres of the training")
    if isinstance(model, AttributeNetwork) and model.config.learned_classes:
        learned = [model.learned_centres(attribute).detach() for attribute in split.schema.names]
        found |= centre_probabilities(embed, learned, name="learned centres")
    if model.has_classes:
        asked = np.arange(len(split)) if images is None else images
        classes = classify_split(
            model, split, asked, flip=flip, batch=batch, threads=threads, bfloat16=bfloat16
        )

        def by_logits(wanted: Integers, attribute: int) -> Tensor:
            return classes[attribute][torch.from_numpy(np.searchsorted(asked, wanted))]

        found["class logits"] = by_logits
    return found


def _embed_in_python(
    model: Model,
    split: Split,
    images: Integers,
    attributes: Integers,
    batch: int,
    threads: int,
    bfloat16: bool,
    augment: Augment | None = None,
) -> Tensor:
    """``embed_pairs`` for a trunk that is a module of the caller's, or for changed images."""
    asked, rows = np.unique(images, return_inverse=True)

    def embed(inputs: Inputs) -> Tensor:
        return encode(model, inputs, range(len(model.spaces))).float().cpu()

    every = torch.cat(_in_python(model, split, asked, embed, batch, threads, bfloat16, augment))
    return every[torch.from_numpy(rows), torch.from_numpy(attributes)]


@torch.no_grad()
def _in_python(
    model: Model,
    split: Split,
    images: Integers,
    embed: Callable[[Inputs], T],
    batch: int,
    threads: int,
    bfloat16: bool,
    augment: Augment | None = None,
) -> list[T]:
    """What ``embed`` makes of each batch of images, the model in evaluation mode."""
    device = next(model.parameters()).device
    loader = Loader(
        _part(split, images),
        batch=batch,
        shuffle=False,
        drop_last=False,
        preprocess=_C.Preprocess(**model.preprocess),
        augment=augment,
        keep_pixels=model.needs_pictures,
        views=_views(model, split),
        threads=threads,
    )
    training = model.training
    model.eval()
    every = []
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        for part in loader:
            every.append(embed(Inputs.of(model, part)))
    model.train(training)
    return every


def mean_direction(views: Sequence[Tensor], blocks: int = 1) -> Tensor:
    """Return rows ``[V, D]`` of which each block has the views' mean direction, and the first view's norm."""
    if len(views) == 1:
        return views[0]
    first, *others = (rows.unflatten(1, (blocks, -1)) for rows in views)
    mean: Tensor = F.normalize(first + sum(others), dim=2) * first.norm(dim=2, keepdim=True)
    return mean.flatten(1)


def _part(split: Split, images: Integers) -> Split:
    """Some images of a split, without labels and lists."""
    return Split(
        name=split.name,
        root=split.root,
        schema=split.schema,
        images=len(images),
        filenames=Texts(split.filenames[image] for image in images.tolist()),
        labels=Labels.of([[]] * len(images), split.labels.values),
        boxes=None if split.boxes is None else split.boxes[images],
        source=split.source,
        store=split.store,
        places=None if split.places is None else split.places[images],
        masks=None if split.masks is None else _part_of_masks(split.masks, images),
    )


def _part_of_masks(masks: Masks, images: Integers) -> Masks:
    files = Texts(masks.filenames[image] for image in images.tolist())
    return Masks(files, masks.numbers[images], masks.bits)


_EmbedPairs = Callable[[Split, Integers, Integers], Tensor]


def _map_all(
    part: Split, embed: _EmbedPairs, valid: Split | None, per_attribute: bool, allow_missing: bool
) -> Result:
    """Evaluate a split; with ``valid`` by the weight of the region branch that is best there."""
    queries, candidates, missing = _lists(part, allow_missing)
    found = _embed_rows(part, np.concatenate([queries, candidates]), embed)
    if valid is None:
        return asfr_map_all(queries, candidates, found, part.schema, missing=missing)
    asked, offered, _ = _lists(valid, allow_missing)
    known = _embed_rows(valid, np.concatenate([asked, offered]), embed)
    return asfr_joint(
        Blocks(asked, offered, *_blocks(known)),
        Blocks(queries, candidates, *_blocks(found)),
        part.schema,
        per_attribute=per_attribute,
        missing=missing,
    )


def _by_classes(
    part: Split,
    train: Split,
    valid: Split,
    embed: Callable[..., Tensor],
    estimate: Callable[..., Mapping[str, Embed]],
    ranking: Ranking,
    weights: Sequence[float],
    allow_missing: bool,
) -> Result:
    """Evaluate a split by class agreement, alone or with embeddings, as is best on ``valid``."""
    labels, _ = _labels(train, allow_missing)
    means = class_means(labels, _embed_rows(train, labels, partial(embed, flip=False)), train.schema)

    def labelled(split: Split) -> Labelled:
        queries, candidates, missing = _lists(split, allow_missing)
        rows = np.concatenate([queries, candidates])
        found = _embed_rows(split, rows, embed)
        estimates = estimate(split, found, means, np.unique(rows[:, 0]))
        return Labelled(queries, candidates, found, estimates, missing)

    splits = labelled(valid), labelled(part)
    return class_agreement(*splits, part.schema, weights=weights, per_attribute=True)[ranking].test


def _multilabel(part: Split, embed: _EmbedPairs, allow_missing: bool) -> Result:
    rows, missing = _labels(part, allow_missing)
    return asfr_multilabel(rows, _embed_rows(part, rows, embed), part.schema, missing=missing)


def _labels(part: Split, allow_missing: bool) -> tuple[Integers, int]:
    """Labels (image, attribute, value) of images that are there, and how many images are not."""
    labels = part.labels
    rows = np.stack([labels.images(), labels.attribute, labels.value], axis=1).astype(np.int64)
    if not len(rows):
        raise ValueError(
            f"evaluate: split must have labels, got '{part.name}' of {part.root} without; "
            f"put label_{part.name}.txt beside the other lists"
        )
    return _present(part, rows, allow_missing)


class _EmbedClasses:
    """Class-conditioned embeddings of a split, of one attribute's values at a time."""

    def __init__(self, model: Model, split: Split, batch: int, threads: int, bfloat16: bool) -> None:
        if not model.has_classes:
            raise ValueError(
                f"evaluate: model must have class embeddings for asfr-multilabel-class/v1, got {model.name}"
            )
        self._embed = partial(embed_classes, model, split, batch=batch, threads=threads, bfloat16=bfloat16)
        self._attribute = -1

    def __call__(self, images: Integers, attribute: int, value: int) -> tuple[Tensor, Tensor]:
        if attribute != self._attribute:
            self._attribute = attribute
            self._embeddings, self._probabilities = self._embed(images, attribute)
        return self._embeddings[:, value], self._probabilities[:, value]


def _lists(part: Split, allow_missing: bool) -> tuple[Integers, Integers, int]:
    """Query and candidate lists without images that are not there, and how many are not."""
    if not len(part.queries) or not len(part.candidates):
        raise ValueError(
            f"evaluate: split must have query and candidate lists, got '{part.name}' of {part.root} without"
        )
    rows = np.concatenate([part.queries, part.candidates]).astype(np.int64)
    asks = np.arange(len(rows)) < len(part.queries)
    kept, missing = _present(part, np.column_stack([rows, asks]), allow_missing)
    return kept[kept[:, 3] == 1, :3], kept[kept[:, 3] == 0, :3], missing


def _present(part: Split, rows: Integers, allow_missing: bool) -> tuple[Integers, int]:
    """Rows, whose first column is an image, of images that are there, and how many images are not."""
    if not allow_missing or part.store is not None:
        return rows, 0
    images, row = np.unique(rows[:, 0], return_inverse=True)
    paths = part.image_list()
    there = np.array([os.path.isfile(paths.path(image)) for image in images.tolist()], dtype=np.bool_)
    if not there.any():
        raise ValueError(
            f"evaluate: split must have images, got '{part.name}' of {part.root} with none there"
        )
    return rows[there[row]], int((~there).sum())


def _embed_rows(part: Split, rows: Integers, embed: _EmbedPairs) -> Embed:
    """Embed the images of rows (image, attribute, ...), each pair once."""
    width = len(part.schema)
    keys = np.unique(rows[:, 0] * width + rows[:, 1])
    embeddings = embed(part, keys // width, keys % width)

    def find(images: Integers, attribute: int) -> Tensor:
        return embeddings[torch.from_numpy(np.searchsorted(keys, images * width + attribute))]

    return find


def _blocks(embed: Embed) -> tuple[Embed, Embed]:
    """The region's and the patch's block of joint embeddings."""

    def block(number: int, images: Integers, attribute: int) -> Tensor:
        return split_joint(embed(images, attribute))[number]

    return partial(block, 0), partial(block, 1)


def _products(
    data: Dataset,
    name: str,
    protocol: str,
    weights: Mapping[str, float],
    numbers: Sequence[int],
    gallery: Gallery,
    within: bool,
    rerank: Rerank | None,
    embed: _EmbedPairs,
    allow_missing: bool,
) -> Result:
    """Evaluate on photos of products, of one split or of two; spaces by name and their numbers."""
    part = data.split(name)
    shops = protocol == "c2s-topk/v1"
    if part.identities is None or part.query_images is None or part.gallery_images is None:
        raise ValueError(
            f"evaluate: {protocol} needs products and lists of query and gallery photos, got '{name}' of "
            f"{data.root} without"
        )
    if shops != (part.domains is not None):
        kinds = "photos of consumers and of shops" if shops else "photos of one kind"
        other = "inshop-recall/v1" if shops else "c2s-topk/v1"
        raise ValueError(f"evaluate: {protocol} needs {kinds}, got others in {data.root}; use {other}")
    if within and not len(data.schema):
        raise ValueError(f"evaluate: by_category needs an attribute of the data, got {data.root} without any")
    asked = [(part, part.query_images)]
    offered = [(part, part.gallery_images)]
    if shops and gallery == "all-shop":
        others = [data.split(other) for other in data.splits if other != "train"]
        offered = [(other, other.gallery_images) for other in others if other.gallery_images is not None]
    spaces = np.array(numbers)
    found: dict[str, _Embedded] = {}
    for source in {source.name: source for source, _ in [*asked, *offered]}.values():
        ids = np.unique(np.concatenate([images for s, images in [*asked, *offered] if s is source]))
        kept, missing = _present(source, ids[:, None].astype(np.int64), allow_missing)
        ids = kept[:, 0]
        rows = embed(source, ids.repeat(len(spaces)), np.tile(spaces, len(ids)))
        found[source.name] = _Embedded(ids, rows.view(len(ids), len(spaces), -1), missing)

    def photos(lists: Sequence[tuple[Split, Ints]]) -> tuple[Photos, Tensor]:
        columns, embeddings = [], []
        for source, images in lists:
            there = images[np.isin(images, found[source.name].images)].astype(np.int64)
            columns.append(_photo_columns(source, there, within))
            embeddings.append(found[source.name].of(there))
        joined = Photos(
            np.concatenate([column.images for column in columns]),
            np.concatenate([column.products for column in columns]),
            _joined([column.categories for column in columns]),
            _joined([column.sequences for column in columns]),
        )
        return joined, torch.cat(embeddings)

    (queries, query_embeddings), (candidates, gallery_embeddings) = photos(asked), photos(offered)
    evaluate_photos = partial(c2s_topk, gallery_kind=gallery) if shops else inshop_recall
    return evaluate_photos(
        queries,
        candidates,
        query_embeddings,
        gallery_embeddings,
        categories=data.schema[0].values if within else (),
        weights=list(weights.values()),
        similarity=f"mean cosine in {', '.join(f'{name} ({weight:g})' for name, weight in weights.items())}",
        rerank=rerank,
        missing=sum(each.missing for each in found.values()),
    )


def _recognition(
    model: Model,
    data: Dataset,
    name: str,
    regions: bool,
    flip: bool,
    allow_missing: bool,
    batch: int,
    threads: int,
    bfloat16: bool,
) -> Result:
    """Evaluate scores of values; those of "valid" choose the thresholds."""
    if flip:
        raise ValueError("evaluate: flip must be False with recognition/v1, got True")
    if not isinstance(model, RafClip) and not model.has_classes:
        raise ValueError(
            "evaluate: model must score attribute values for recognition/v1, as raf_clip and m3net do, got "
            f"{model.name}"
        )

    def score(part: Split) -> Tensor:
        if isinstance(model, RafClip):
            return score_values(model, part, batch=batch, threads=threads, bfloat16=bfloat16)
        return torch.cat(classify_split(model, part, batch=batch, threads=threads, bfloat16=bfloat16), dim=1)

    def scored(split: str) -> tuple[Tensor, NDArray[np.int8], int]:
        part = data.region_split(split) if regions else data.split(split)
        if part is None:
            raise ValueError(f"evaluate: data must have regions, got {data.root} without")
        part = part.under(model.schema)
        kept, missing = _present(part, np.arange(len(part))[:, None], allow_missing)
        ids = kept[:, 0]
        found = score(_part(part, ids))
        return found, recognition_targets(part.labels)[ids], missing

    scores, targets, missing = scored(name)
    valid = scored("valid") if name != "valid" else (scores, targets, missing)
    return recognition(scores, targets, valid[0], valid[1], model.schema, missing=missing)


def _composed(
    model: Model,
    data: Dataset,
    name: str,
    protocol: str,
    ranked: Callable[..., Result],
    allow_missing: bool,
    batch: int,
    threads: int,
    bfloat16: bool,
) -> Result:
    """Evaluate composed queries by what ranks them."""
    if not isinstance(model, RafClip):
        raise ValueError(
            f"evaluate: model must embed image and text together for {protocol}, as raf_clip does, got "
            f"{model.name}"
        )
    compositions = composed_queries("evaluate", data, name)
    part = data.split(name)
    kept, _ = _present(part, np.arange(len(part))[:, None], allow_missing)
    ids = kept[:, 0]
    place = np.full(len(part) + 1, -1)  # the last for a reference of -1
    place[ids] = np.arange(len(ids))
    found = compose_split(
        model,
        _part(part, ids),
        torch.from_numpy(place[compositions.reference]),
        joined_captions(compositions),
        batch=batch,
        threads=threads,
        bfloat16=bfloat16,
    )
    images = torch.zeros(len(part), found.images.shape[1])
    images[torch.from_numpy(ids)] = found.images
    return ranked(compositions, part, found.queries, images, present=np.isin(np.arange(len(part)), ids))


class _Embedded(NamedTuple):
    """Images of a split that are there, and their embeddings."""

    images: Integers  # [n], rising
    embeddings: Tensor  # [n, S, D]
    missing: int

    def of(self, images: Integers) -> Tensor:
        return self.embeddings[torch.from_numpy(np.searchsorted(self.images, images))]


def _joined(columns: Sequence[Integers | None]) -> Integers | None:
    """One column after another, None where one is."""
    there = [column for column in columns if column is not None]
    return np.concatenate(there) if len(there) == len(columns) else None


def _photo_columns(part: Split, images: Integers, within: bool) -> Photos:
    """Return what a protocol must know of photos, with numbers that no other split's have."""
    assert part.identities is not None
    categories = sequences = None
    if within:
        values = np.full(len(part), -1)
        own = part.labels.attribute == 0
        values[part.labels.images()[own]] = part.labels.value[own]
        categories = values[images]
        if (categories < 0).any():
            unlabelled = part.filenames[int(images[categories < 0][0])]
            raise ValueError(
                f"evaluate: by_category needs a value of '{part.schema.names[0]}' for every photo, "
                f"got {unlabelled} without"
            )
    if part.sequences is not None:
        sequences = part.sequences[images].astype(np.int64)
    numbers = images + (SPLITS.index(part.name) << 32)
    return Photos(numbers, part.identities[images].astype(np.int64), categories, sequences)
