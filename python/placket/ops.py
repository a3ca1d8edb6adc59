"""The operators as typed functions: CPU and CUDA kernels each and, where there is a gradient, C++ autograd.

Dimensions: B images, A attributes, C channels of a map of P = h x w positions, N rows, D (or E) channels of
an embedding, Q queries (and, beside them, C candidates).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from placket.ranking import RankMetrics

__all__ = [
    "assignment_consistency",
    "attention_pool",
    "average_precision",
    "batch_hard",
    "batch_norm_act",
    "centre_cross_entropy",
    "centre_triplet",
    "class_centre_triplet",
    "class_centres",
    "class_centres_of_sums",
    "class_cross_entropy",
    "class_instance_triplet",
    "class_recognition",
    "class_sums",
    "cosine_triplet",
    "crop_resize",
    "flat_search",
    "flat_search_compressed",
    "gated_fusion",
    "info_nce",
    "info_nce_terms",
    "label_relation",
    "pairwise_sigmoid",
    "pairwise_sigmoid_sum",
    "prototype_cross_entropy",
    "pseudo_label_cross_entropy",
    "quantize",
    "rank_metrics",
    "rank_metrics_of_scores",
    "region_box",
    "region_patch_info_nce",
    "supervised_contrastive",
    "tri_hard",
    "value_groups",
]


def assignment_consistency(
    first: Tensor,
    second: Tensor,
    centres: Tensor,
    owners: Tensor,
    attributes: Tensor,
    temperature: float = 0.1,
) -> Tensor:
    """Return how far two views of the same images differ in the classes they are assigned to.

    The mean of ``-(p . log q + q . log p) / 2`` over images, p and q the two views' softmax over the
    attribute's centres; the factor outside of the logarithm is a target without a gradient (SwAV's swapped
    prediction, NeurIPS 2020, without queue and balanced codes).

    Args:
        first, second: ``[V, E]``, the views of V images under an attribute.
        centres, owners, attributes, temperature: see ``prototype_cross_entropy``.

    Returns:
        A scalar, float32 (float64 of float64 embeddings).
    """
    return torch.ops.placket.assignment_consistency(first, second, centres, owners, attributes, temperature)


def attention_pool(logits: Tensor, values: Tensor, background: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Pool a map under each attribute's attention, and under what the attention leaves out.

    ``weights = softmax_P(logits)``, ``pooled = sum_P weights * values`` and ``background = sum_P (1 -
    weights) * values / (P - 1)`` (RPF, SIGIR 2023), the last in closed form from the sum over the positions.

    Args:
        logits: ``[B, A, P]``; a NaN makes its attribute's three results NaN.
        values: ``[B, C, P]`` of the same dtype; a channels_last map's ``flatten(2)`` is read without a copy.
        background: whether the second result is wanted.

    Returns:
        pooled ``[B, A, C]``, background ``[B, A, C]`` (empty unless wanted; 0 where P is 1, since nothing is
        outside the attention then), and weights ``[B, A, P]``.
    """
    return torch.ops.placket.attention_pool(logits, values, background)


@torch.library.register_fake("placket::attention_pool")
def _(logits: Tensor, values: Tensor, background: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    pooled = values.new_empty(logits.shape[0], logits.shape[1], values.shape[1])
    outside = torch.empty_like(pooled) if background else values.new_empty(0)
    return pooled, outside, torch.empty_like(logits, memory_format=torch.contiguous_format)


@torch.library.register_fake("placket::_attention_pool_backward")
def _(
    grad_pooled: Tensor | None,
    grad_background: Tensor | None,
    grad_weights: Tensor | None,
    weights: Tensor,
    values: Tensor,
    logits_grad: bool,
    values_grad: bool,
) -> tuple[Tensor, Tensor]:
    grad_logits = torch.empty_like(weights) if logits_grad else values.new_empty(0)
    if not values_grad:
        return grad_logits, values.new_empty(0)
    if values.transpose(1, 2).is_contiguous() and not values.is_contiguous():
        return grad_logits, torch.empty_like(values.transpose(1, 2)).transpose(1, 2)
    return grad_logits, torch.empty_like(values, memory_format=torch.contiguous_format)


def average_precision(
    queries: Tensor,
    candidates: Tensor,
    query_values: Tensor,
    candidate_values: Tensor,
    block: int | None = None,
) -> Tensor:
    """Return the average precision of each query over the whole candidate list.

    ``rank_metrics`` where a candidate is relevant when its value equals the query's.

    Args:
        queries: ``[Q, D]`` float32, usually L2-normalised.
        candidates: ``[C, D]`` float32.
        query_values: ``[Q]`` int64.
        candidate_values: ``[C]`` int64.
        block: of so many queries scores exist at a time; None chooses.

    Returns:
        ``[Q]`` float64 in [0, 1], 0 where no candidate is relevant.

    Raises:
        ValueError: where a score is NaN.
    """
    return torch.ops.placket.average_precision(queries, candidates, query_values, candidate_values, block)


class HardPairs(NamedTuple):
    """The hardest positive and negative of each row of a batch.

    Attributes:
        positive, negative: ``[B]`` int64, their rows; -1 where there is none.
        positive_similarity, negative_similarity: ``[B]``, their cosines; 0 where there is none.
    """

    positive: Tensor
    negative: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor


def batch_hard(
    embeddings: Tensor,
    labels: Tensor,
    groups: Tensor | None = None,
    semi_hard: bool = False,
    domains: Tensor | None = None,
) -> HardPairs:
    """Return the least similar positive and the most similar negative of each row, by cosine.

    Batch-hard mining (Hermans et al., 2017) in tiles: there is no B x B matrix in memory. Of equal ones the
    first row is taken; a cosine that is NaN counts as the hardest. No gradient flows through it.

    Args:
        embeddings: ``[B, D]``, any floating dtype; rows are normalised inside.
        labels: ``[B]`` int64: rows of one label are positives of each other, -1 takes no part. Or ``[B, W]``
            int64: sets of classes as ``placket.losses.label_sets`` makes them; rows that share one are
            positives, an empty set takes no part. Or ``[B, B]`` bool: which rows are positives of each other
            (in either order); all take part. All others are negatives.
        groups: ``[B]`` int64; only rows of one group, an attribute for example, are compared.
        semi_hard: return as negative the most similar one that is less similar than that positive (FaceNet,
            CVPR 2015), and the least similar of all where there is none. A row without a positive has its
            most similar one.
        domains: ``[B]`` int64; only rows of different domains, consumers' photos with shops', are compared.
    """
    return HardPairs(*torch.ops.placket.batch_hard(embeddings, labels, groups, semi_hard, domains))


@torch.library.register_fake("placket::batch_hard")
def _(
    embeddings: Tensor,
    labels: Tensor,
    groups: Tensor | None = None,
    semi_hard: bool = False,
    domains: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    index = labels.new_empty(embeddings.shape[0], dtype=torch.int64)
    similarity = embeddings.new_empty(embeddings.shape[0], dtype=dtype)
    return index, torch.empty_like(index), similarity, torch.empty_like(similarity)


def batch_norm_act(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int = 1,
    eps: float = 1e-5,
    relu: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise a map by statistics of the batch, add a residual and apply ReLU, in one pass.

    Args:
        input: ``[B, C, h, w]``; taken and returned in channels_last memory.
        residual: None, or a map like ``input`` that is added before the ReLU.
        weight, bias: ``[C]``, float32 (float64 for a float64 map).
        groups: statistics of this many equal parts of the batch are kept apart; divides B. With the three
            roles of a triplet batch one after another, 3 gives what three forwards would.
        eps: added to the variance.
        relu: whether negative values are cut off.

    Returns:
        The map, and mean and biased variance ``[groups, C]`` for the running statistics (they carry no
        gradient).
    """
    return torch.ops.placket.batch_norm_act(input, residual, weight, bias, groups, eps, relu)


@torch.library.register_fake("placket::batch_norm_act")
def _(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int = 1,
    eps: float = 1e-5,
    relu: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = weight.new_empty(groups, input.shape[1])
    output = torch.empty_like(input, memory_format=torch.channels_last)
    return output, statistics, torch.empty_like(statistics)


@torch.library.register_fake("placket::_batch_norm_act_backward")
def _(
    grad: Tensor,
    input: Tensor,
    output: Tensor,
    weight: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    map_like = torch.empty_like(input, memory_format=torch.channels_last)
    grad_residual = torch.empty_like(map_like) if residual else input.new_empty(0)
    return map_like, grad_residual, torch.empty_like(weight), torch.empty_like(weight)


def centre_cross_entropy(
    embeddings: Tensor,
    centres: Tensor,
    owners: Tensor,
    attributes: Tensor,
    classes: Tensor,
    scale: float = 16.0,
) -> Tensor:
    """Return the cross-entropy of scaled cosines to the class centres of each row's attribute (NormFace).

    Args:
        embeddings: ``[B, D]``; rows are normalised inside.
        centres: ``[C, D]`` of all attributes' classes; normalised inside too.
        owners: ``[C]`` int64, the attribute of each class.
        attributes: ``[B]`` int64.
        classes: ``[B]`` int64, rows of ``centres``, -1 for none; or ``[B, C]`` bool, sets of them, whose
            terms are averaged over the row's classes of its attribute.
        scale: of the cosines; the inverse of a temperature.

    Returns:
        The mean over rows with a class, float32 (float64 for float64 rows); 0 where there is none.
    """
    return torch.ops.placket.centre_cross_entropy(embeddings, centres, owners, attributes, classes, scale)


def centre_triplet(
    embeddings: Tensor,
    centres: Tensor,
    owners: Tensor,
    attributes: Tensor,
    classes: Tensor,
    margin: float = 0.2,
) -> Tensor:
    """Return the triplet hinge of embeddings between their class's centre and the nearest other one.

    The mean of ``max(0, margin - cos(z, centre_y) + max_c cos(z, centre_c))``, c the attribute's other
    classes.

    Args:
        embeddings, centres, owners, attributes, classes: see ``prototype_cross_entropy``.
        margin: by how much the own centre must be nearer, in cosine.

    Returns:
        A scalar, float32 (float64 of float64 embeddings).
    """
    return torch.ops.placket.centre_triplet(embeddings, centres, owners, attributes, classes, margin)


def class_centre_triplet(
    embeddings: Tensor, anchors: Tensor, negatives: Tensor, centres: Tensor, margin: float = 0.2
) -> Tensor:
    """Return M3-Net's L_CC: as ``class_instance_triplet`` with class centres for the positives.

    Args:
        embeddings, anchors, negatives, margin: see ``class_instance_triplet``.
        centres: ``[V, F]`` of the anchors' classes.
    """
    return torch.ops.placket.class_centre_triplet(embeddings, anchors, negatives, centres, margin)


def class_centres(centres: Tensor, embeddings: Tensor, classes: Tensor, momentum: float = 0.9) -> Tensor:
    """Return class centres moved towards the means of a batch: an exponential average kept online.

    ``centre_c <- normalise(momentum * centre_c + (1 - momentum) * mean of class c's unit rows)``. A class
    without a row keeps its centre in every bit; one whose centre is zero, never seen, takes the direction of
    the mean. Equal calls give equal bits; no gradient.

    Args:
        centres: ``[M, E]`` unit rows or zeros, float32 (float64 with float64 embeddings).
        embeddings: ``[V, E]``, float32, bfloat16 or float64; normalised inside.
        classes: ``[V]`` int64 ids below M; a row of class -1 takes no part.
        momentum: in [0, 1).

    Returns:
        ``[M, E]``, like ``centres``.

    Raises:
        ValueError: a shape does not fit, ``momentum`` is out of range, or, on the CPU, a class is.
        TypeError: a dtype is another.
    """
    return torch.ops.placket.class_centres(centres, embeddings, classes, momentum)


@torch.library.register_fake("placket::class_centres")
def _(centres: Tensor, embeddings: Tensor, classes: Tensor, momentum: float = 0.9) -> Tensor:
    return torch.empty_like(centres, memory_format=torch.contiguous_format)


def class_centres_of_sums(centres: Tensor, sums: Tensor, counts: Tensor, momentum: float = 0.9) -> Tensor:
    """Return class centres moved towards ``sums / counts``: the second step of ``class_centres``.

    Args:
        centres: ``[M, E]`` unit rows or zeros.
        sums: ``[M, E]``, of the dtype of ``centres``, which several processes may have added up.
        counts: ``[M]`` rows in each sum, of the same dtype; a class with 0 keeps its centre.
        momentum: in [0, 1).

    Returns:
        ``[M, E]``, like ``centres``.
    """
    return torch.ops.placket.class_centres_of_sums(centres, sums, counts, momentum)


@torch.library.register_fake("placket::class_centres_of_sums")
def _(centres: Tensor, sums: Tensor, counts: Tensor, momentum: float = 0.9) -> Tensor:
    return torch.empty_like(centres, memory_format=torch.contiguous_format)


def class_cross_entropy(logits: Tensor, classes: Tensor, owners: Tensor) -> Tensor:
    """Return the cross-entropy of the softmax within each attribute, for images of one value an attribute.

    Args:
        logits: ``[N, M]``.
        classes: ``[N, A]`` int64 below M, -1 for no label.
        owners: ``[M]`` int64, the attribute of each class.
    """
    return torch.ops.placket.class_cross_entropy(logits, classes, owners)


def class_instance_triplet(
    embeddings: Tensor, anchors: Tensor, positives: Tensor, negatives: Tensor, margin: float = 0.2
) -> Tensor:
    """Return M3-Net's L_CI: triplets of images in the space of each anchor's class.

    Args:
        embeddings: ``[N, V, F]``, image n by the class of anchor v.
        anchors: ``[V]`` int64, which of the images each anchor is.
        positives: ``[N, V]`` bool, images that carry the anchor's class.
        negatives: ``[N, V]`` bool, images that carry other values of its attribute only.
        margin: in cosine.

    Returns:
        A scalar, float32 at least; 0 without triplets. Memory grows as N N V.
    """
    return torch.ops.placket.class_instance_triplet(embeddings, anchors, positives, negatives, margin)


def class_recognition(
    logits: Tensor, carried: Tensor, labelled: Tensor, owners: Tensor, positive_weight: float = 10.0
) -> Tensor:
    """Return M3-Net's L_M: the weighted binary cross-entropy of all classes of labelled attributes.

    The mean over images with a label of the sum over their labelled attributes of
    ``mean_m -[w_p y_m log x_m + (1 - y_m) log(1 - x_m)]``, ``x_m = sigmoid(logit_m)``.

    Args:
        logits: ``[N, M]``.
        carried: ``[N, M]`` bool, the classes that each image carries: y.
        labelled: ``[N, A]`` bool.
        owners: ``[M]`` int64, the attribute of each class.
        positive_weight: w_p.

    Returns:
        A scalar, float32 at least; 0 where no image has a label.
    """
    return torch.ops.placket.class_recognition(logits, carried, labelled, owners, positive_weight)


def class_sums(embeddings: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the sum of each class's unit rows and their number: the first step of ``class_centres``.

    Args:
        embeddings: ``[V, E]``, float32, bfloat16 or float64; normalised inside.
        classes: ``[V]`` int64 ids below ``count``; a row of class -1 takes no part.
        count: M.

    Returns:
        sums ``[M, E]`` and counts ``[M]``, float32 (float64 of float64 embeddings).
    """
    return torch.ops.placket.class_sums(embeddings, classes, count)


@torch.library.register_fake("placket::class_sums")
def _(embeddings: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    sums = embeddings.new_empty(count, embeddings.shape[1], dtype=wide)
    return sums, sums.new_empty(count)


def cosine_triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 0.2) -> Tensor:
    """Return the triplet hinge ``max(0, margin - cos(a, p) + cos(a, n))`` of each row.

    Args:
        anchor, positive, negative: ``[N, D]``, one floating dtype; rows need not be normalised (a zero row
            has cosine 0).
        margin: by how much the positive must be nearer, in cosine; 0.2 in ASEN, ASEN++ and RPF.

    Returns:
        ``[N]``; the loss of the papers is its mean, and ``(hinge > 0).mean()`` the share of active triplets.
    """
    return torch.ops.placket.cosine_triplet(anchor, positive, negative, margin)


@torch.library.register_fake("placket::cosine_triplet")
def _(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 0.2) -> Tensor:
    return anchor.new_empty(anchor.shape[0])


@torch.library.register_fake("placket::_cosine_triplet_backward")
def _(
    grad: Tensor, anchor: Tensor, positive: Tensor, negative: Tensor, margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(anchor, memory_format=torch.contiguous_format),
        torch.empty_like(positive, memory_format=torch.contiguous_format),
        torch.empty_like(negative, memory_format=torch.contiguous_format),
    )


def crop_resize(
    pixels: Tensor,
    offsets: Tensor,
    sizes: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    height: int,
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    flip: Tensor | None = None,
    windows: Tensor | None = None,
) -> Tensor:
    """Cut boxes out of 8-bit RGB images of any sizes, resize them as Pillow does in every bit, and normalise.

    The 8-bit values are those of Pillow 13's ``Image.crop(box).resize((width, height), BILINEAR)``; parts of
    a box outside its image are black.

    Args:
        pixels: ``[L]`` uint8, the images' ``[h, w, 3]`` one after another.
        offsets: ``[N]`` int64, first byte of each image.
        sizes: ``[N, 2]`` int64, height and width of each image.
        boxes: ``[M, 4]`` int64, x0 y0 x1 y1 with x1 and y1 exclusive, no further than 2**20 from 0.
        image_index: ``[M]`` int64, which image a box is cut from.
        height, width: size of the crops.
        mean, std: of the three channels, for values in [0, 1].
        dtype: float32 or bfloat16.
        channels_last: whether the crops lie in channels_last memory.
        flip: None, or ``[M]`` bool: crops to mirror.
        windows: None for whole boxes, or ``[M, 4]`` int64: resized height, resized width, top, left. The box
            is resized to those sides, at most 2**34, and the crop is what begins at (top, left) in it.

    Returns:
        ``[M, 3, height, width]``, ``(value / 255 - mean) / std``.

    Raises:
        ValueError: on the CPU, when a box, window, index, offset or size is not valid. On CUDA such a crop is
            black, since a check would wait for the device.
    """
    return torch.ops.placket.crop_resize(
        pixels,
        offsets,
        sizes,
        boxes,
        image_index,
        height,
        width,
        mean,
        std,
        dtype,
        channels_last,
        flip,
        windows,
    )


@torch.library.register_fake("placket::crop_resize")
def _(
    pixels: Tensor,
    offsets: Tensor,
    sizes: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    height: int,
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    flip: Tensor | None = None,
    windows: Tensor | None = None,
) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (boxes.shape[0], 3, height, width)
    return torch.empty(shape, dtype=dtype, device=pixels.device, memory_format=layout)


def flat_search(
    queries: Sequence[Tensor],
    database: Sequence[Tensor],
    weights: Sequence[float],
    keep: Tensor | None = None,
    k: int = 10,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ``k`` rows of a database with the largest weighted sum of dot products, exactly.

    ``score = sum_s weights[s] * <queries[s], database[s]>`` over S spaces, in float32: the weight is rounded
    to float32, so is its product with the dot product, and then the products are added in the order of the
    spaces. Equal scores are ordered by row. On CPU the bits depend on neither the number of threads nor the
    other queries, and memory does not grow with Q x N.

    Args:
        queries: S tensors ``[Q, D_s]`` float32; S is at least 1.
        database: S tensors ``[N, D_s]`` float32; those that are contiguous are read in place, so they may be
            memory-mapped.
        weights: S numbers.
        keep: ``[N]`` bool, the rows that may be found; others are not read. None keeps all.
        k: at least 0; ``k' = min(k, rows kept)``.

    Returns:
        Scores ``[Q, k']`` float32, descending, rows ``[Q, k']`` int64, and parts ``[Q, k', S]`` float32: the
        dot product in each space, without its weight.

    Raises:
        ValueError: where a score is NaN.
    """
    return torch.ops.placket.flat_search(queries, database, weights, keep, k)


@torch.library.register_fake("placket::flat_search")
def _(
    queries: Sequence[Tensor],
    database: Sequence[Tensor],
    weights: Sequence[float],
    keep: Tensor | None,
    k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_hits(queries, database, keep, k)


def pairwise_sigmoid(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    labels: Tensor | None = None,
    y_labels: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Return the pairwise sigmoid loss between two sides (SigLIP: Zhai et al., ICCV 2023).

    With logits ``z = scale * x @ y.T + bias``, ``log(1 + exp(-z))`` of positive and ``log(1 + exp(z))`` of
    negative pairs, summed over pairs and divided by the rows that have a pair: all B, unless pairs are left
    out.

    Args:
        x, y, scale, labels, y_labels, valid: see ``info_nce``. With a ``labels`` of False throughout, the
            valid pairs are negatives.
        bias: ``[]``.

    Returns:
        A scalar, float32 (float64 of float64 rows); 0 without a pair.
    """
    return torch.ops.placket.pairwise_sigmoid(x, y, scale, bias, labels, y_labels, valid)


def pairwise_sigmoid_sum(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    labels: Tensor | None = None,
    y_labels: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the sum of ``pairwise_sigmoid`` and the number of rows that it is divided by, int64."""
    return torch.ops.placket.pairwise_sigmoid_sum(x, y, scale, bias, labels, y_labels, valid)


@torch.library.register_fake("placket::pairwise_sigmoid_sum")
def _(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    labels: Tensor | None = None,
    y_labels: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return x.new_empty((), dtype=_loss_dtype(x)), x.new_empty((), dtype=torch.int64)


@torch.library.register_fake("placket::_pairwise_sigmoid_gradients")
def _(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    labels: Tensor | None,
    y_labels: Tensor | None,
    valid: Tensor | None,
    for_x: bool,
    for_y: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    total = x.new_empty((), dtype=_loss_dtype(x))
    of_x, of_y = (total.new_empty(rows.shape if wanted else 0) for rows, wanted in ((x, for_x), (y, for_y)))
    return total, x.new_empty((), dtype=torch.int64), of_x, of_y, total.clone(), total.clone()


@torch.library.register_fake("placket::_pairwise_sigmoid_backward")
def _(
    grad: Tensor,
    grad_x: Tensor,
    grad_y: Tensor,
    grad_scale: Tensor,
    grad_bias: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_bias = grad_bias if bias is None else bias
    return x.new_empty(grad_x.shape), y.new_empty(grad_y.shape), scale.new_empty(()), of_bias.new_empty(())


def prototype_cross_entropy(
    embeddings: Tensor,
    centres: Tensor,
    owners: Tensor,
    attributes: Tensor,
    classes: Tensor,
    temperature: float = 0.1,
) -> Tensor:
    """Return the cross-entropy of the softmax over an attribute's class centres.

    The mean of ``-log softmax_c(cos(z, centre_c) / temperature)[y]``, c the classes of the row's attribute
    that have been seen. It is over rows with a class that has been seen, of an attribute with two such
    classes or more; 0 where there are none.

    Args:
        embeddings: ``[V, E]``; normalised inside.
        centres: ``[M, E]``, which ``class_centres`` keeps: unit rows, or zeros for a class that was never
            seen. They get no gradient.
        owners: ``[M]`` int64, the attribute of each class.
        attributes: ``[V]`` int64.
        classes: ``[V]`` int64 below M, -1 for a row without one.
        temperature: above 0.

    Returns:
        A scalar, float32 (float64 of float64 embeddings).
    """
    return torch.ops.placket.prototype_cross_entropy(
        embeddings, centres, owners, attributes, classes, temperature
    )


def pseudo_label_cross_entropy(
    embeddings: Tensor,
    centres: Tensor,
    owners: Tensor,
    attributes: Tensor,
    classes: Tensor,
    temperature: float = 0.1,
    confidence: float = 0.8,
) -> Tensor:
    """Return the cross-entropy of rows without a class against that of the nearest centre.

    The mean of ``-log max_c p(c)`` over rows of class -1 with ``max_c p(c) > confidence``, p the softmax of
    ``prototype_cross_entropy``.

    Args:
        embeddings, centres, owners, attributes, classes, temperature: see ``prototype_cross_entropy``.
        confidence: in [0, 1).

    Returns:
        A scalar, float32 (float64 of float64 embeddings).
    """
    return torch.ops.placket.pseudo_label_cross_entropy(
        embeddings, centres, owners, attributes, classes, temperature, confidence
    )


def _empty_hits(
    queries: Sequence[Tensor], database: Sequence[Tensor], keep: Tensor | None, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    found = (
        torch.sym_min(k, database[0].shape[0]) if keep is None else torch.library.get_ctx().new_dynamic_size()
    )
    scores = queries[0].new_empty(queries[0].shape[0], found)
    return scores, torch.empty_like(scores, dtype=torch.int64), scores.new_empty(*scores.shape, len(queries))


def flat_search_compressed(
    queries: Sequence[Tensor],
    database: Sequence[Tensor],
    codes: Sequence[Tensor],
    bounds: Sequence[Tensor],
    weights: Sequence[float],
    keep: Tensor | None = None,
    k: int = 10,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what ``flat_search`` returns, in every bit, but read a smaller copy of the database first.

    The copy is ``quantize``'s. By what it says was lost, every row has an upper bound of its score; only rows
    whose bound reaches the k-th best score are scored again from ``database``: of int8 usually two or three
    times k, of bfloat16 a few more than k. On CUDA the codes are not read.

    Args:
        queries, database, weights, keep, k: as for ``flat_search``.
        codes: S tensors ``[N, D_s]`` int8 or bfloat16, of the same rows as ``database``; others give other
            hits.
        bounds: S tensors ``[N, 3]`` float32.

    Returns:
        Scores ``[Q, k']``, rows ``[Q, k']`` and parts ``[Q, k', S]``.

    Raises:
        ValueError: where a score is NaN.
    """
    return torch.ops.placket.flat_search_compressed(queries, database, codes, bounds, weights, keep, k)


@torch.library.register_fake("placket::flat_search_compressed")
def _(
    queries: Sequence[Tensor],
    database: Sequence[Tensor],
    codes: Sequence[Tensor],
    bounds: Sequence[Tensor],
    weights: Sequence[float],
    keep: Tensor | None,
    k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_hits(queries, database, keep, k)


def gated_fusion(
    gate_logits: Tensor,
    selection_logits: Tensor,
    image: Tensor,
    text: Tensor,
    image_clip: Tensor,
    text_clip: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the query that AGCN makes of its two sides, and the image's share in it.

    With ``g = sigmoid(gate_logits)`` and ``l = sigmoid(selection_logits)`` (a reconstruction),

        image part = g image + (1 - l) image_clip
        text part = (1 - g) text + l text_clip
        query = normalize(image part + text part)
        image_share = |image part| / (|image part| + |text part|), 0.5 where both are 0

    Args:
        gate_logits: ``[N, D]``, one for each dimension.
        selection_logits: ``[N]``.
        image, text: ``[N, D]``, the sides after attention (v, t).
        image_clip, text_clip: ``[N, D]``, the features from before.

    Returns:
        query ``[N, D]``, rows of length 1 (0 where the sum is 0), differentiable in all six; image_share
        ``[N]``, which has no gradient.
    """
    return torch.ops.placket.gated_fusion(gate_logits, selection_logits, image, text, image_clip, text_clip)


@torch.library.register_fake("placket::gated_fusion")
def _(
    gate_logits: Tensor,
    selection_logits: Tensor,
    image: Tensor,
    text: Tensor,
    image_clip: Tensor,
    text_clip: Tensor,
) -> tuple[Tensor, Tensor]:
    return _contiguous_like(gate_logits), _contiguous_like(selection_logits)


@torch.library.register_fake("placket::_gated_fusion_backward")
def _(
    grad: Tensor,
    gate_logits: Tensor,
    selection_logits: Tensor,
    image: Tensor,
    text: Tensor,
    image_clip: Tensor,
    text_clip: Tensor,
    clip_grad: bool,
) -> tuple[Tensor, ...]:
    wanted = [_contiguous_like(x) for x in (gate_logits, selection_logits, image, text)]
    clips = [_contiguous_like(x) if clip_grad else x.new_empty(0) for x in (image_clip, text_clip)]
    return (*wanted, *clips)


def _contiguous_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


class InfoNceTerms(NamedTuple):
    """The terms of InfoNCE of each row of two sides, and how many positives each has.

    Attributes:
        rows, columns: ``[B]`` and ``[M]``, log-sum-exp of a row's compared logits less the mean logit of its
            positives; 0 without a positive.
        row_positives, column_positives: ``[B]`` and ``[M]``, of the terms' dtype.
    """

    rows: Tensor
    row_positives: Tensor
    columns: Tensor
    column_positives: Tensor


def info_nce(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    labels: Tensor | None = None,
    y_labels: Tensor | None = None,
    valid: Tensor | None = None,
    symmetric: bool = True,
) -> Tensor:
    """Return InfoNCE between two sides, images and texts for example, with logits ``scale * x @ y.T``.

    CLIP's loss (Radford et al., ICML 2021); several positives of a row are a soft target that is uniform over
    them. Logits are computed in tiles, there is no B x M matrix in memory. Rows are not normalised inside.

    Args:
        x, y: ``[B, D]`` and ``[M, D]``, one floating dtype.
        scale: ``[]``, the inverse of the temperature.
        labels: None: x_i and y_i are each other's only positive. ``[B]`` int64: rows of equal labels are
            positives, -1 takes no part. ``[B, W]`` int64: sets as ``placket.losses.label_sets`` makes them;
            rows that share a class are positives, an empty set takes no part. ``[B, M]`` bool: which pairs
            are positive. All other pairs are negatives.
        y_labels: ``[M]`` or ``[M, W]``; None: those of x.
        valid: ``[B, M]`` bool: pairs that are not are left out.
        symmetric: whether the mean of the columns counts as much as that of the rows, or not at all.

    Returns:
        The mean over rows with a positive, 0 where there is none; float32 (float64 of float64 rows).
    """
    return torch.ops.placket.info_nce(x, y, scale, labels, y_labels, valid, symmetric)


def info_nce_terms(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    labels: Tensor | None = None,
    y_labels: Tensor | None = None,
    valid: Tensor | None = None,
    symmetric: bool = True,
) -> InfoNceTerms:
    """Return what ``info_nce`` is the mean of, for other means; without ``symmetric`` no columns."""
    terms = torch.ops.placket.info_nce_terms(x, y, scale, labels, y_labels, valid, symmetric)
    return InfoNceTerms(*terms[:4])


@torch.library.register_fake("placket::info_nce_terms")
def _(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    labels: Tensor | None = None,
    y_labels: Tensor | None = None,
    valid: Tensor | None = None,
    symmetric: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    row = x.new_empty(x.shape[0], dtype=_loss_dtype(x))
    column = x.new_empty(y.shape[0] if symmetric else 0, dtype=_loss_dtype(x))
    return row, row.clone(), column, column.clone(), row.clone(), column.clone()


@torch.library.register_fake("placket::_info_nce_terms_backward")
def _(
    grad_rows: Tensor,
    grad_columns: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    labels: Tensor | None,
    y_labels: Tensor | None,
    valid: Tensor | None,
    row_positives: Tensor,
    column_positives: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    for_x: bool,
    for_y: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape if for_x else 0), y.new_empty(y.shape if for_y else 0), scale.new_empty(())


def _loss_dtype(rows: Tensor) -> torch.dtype:
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


def label_relation(labels: Tensor, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return which pairs of rows are positives and which are negatives, ``[B, B]`` bool each.

    Neither are a row with itself, rows of different groups, and rows that take no part.

    Args:
        labels, groups: as ``batch_hard`` takes them.
    """
    return torch.ops.placket.label_relation(labels, groups)


def quantize(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return rows in fewer bits, and bounds of what that cost, for ``flat_search_compressed``.

    Args:
        rows: ``[N, D]`` float32, of numbers, each row with a norm of at most 2**40.
        dtype: bfloat16, each value rounded to nearest; or int8, each row divided by its scale, the largest
            magnitude / 127, and rounded to nearest.

    Returns:
        Codes ``[N, D]``, and bounds ``[N, 3]`` float32: scale (1 for bfloat16), an upper bound of
        ``|row - scale * code|``, and one of both ``|row|`` and ``|scale * code|``.

    Raises:
        ValueError: where a row holds NaN or infinity, or its norm is too large.
    """
    return torch.ops.placket.quantize(rows, dtype)


@torch.library.register_fake("placket::quantize")
def _(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    codes = torch.empty_like(rows, dtype=dtype, memory_format=torch.contiguous_format)
    return codes, rows.new_empty(rows.shape[0], 3)


def rank_metrics(
    queries: Sequence[Tensor],
    candidates: Sequence[Tensor],
    weights: Tensor,
    query_groups: Tensor,
    group_offsets: Tensor,
    group_rows: Tensor,
    excluded: Tensor | None = None,
    cutoffs: Sequence[int] = (),
    block: int | None = None,
) -> RankMetrics:
    """Measure each query's ranking of all candidates, exactly and without their matrix of scores.

    The score of a candidate is ``sum_s weights[w, s] <queries[s][q], candidates[s][c]>`` in float32. The S
    dot products are taken once, however many weightings there are. Candidates are ranked by score, ties by
    candidate order. On CPU the bits depend on neither ``block`` nor the number of threads; on CUDA the last
    bits of scores (cuBLAS in float32, never TF32) may depend on the block, and equal scores have the CPU's
    measures to the bit.

    Args:
        queries: S of ``[Q, D_s]`` float32, usually L2-normalised: one, or region and patch embeddings, say.
        candidates: S of ``[C, D_s]`` float32.
        weights: ``[W, S]`` float32.
        query_groups: ``[Q]`` int64: relevant to a query are the candidates of its group.
        group_offsets: ``[G + 1]`` int64: where each group begins in ``group_rows``, and where the last ends.
        group_rows: ``[N]`` int64: candidate rows, ascending in each group; a row may be in several.
        excluded: None, or ``[Q]`` int64: a candidate row that is not ranked for the query, relevant or not
            (its own image, say), -1 for none.
        cutoffs: K ranks, each at least 1, for ``hits`` and ``precision_sum``.
        block: of so many queries scores exist at a time, which takes 4 S C bytes each; None chooses as many
            as 64 MiB hold, from 24 to 120 (on CUDA 4 (S + 2) C bytes each, as many as 256 MiB hold).

    Returns:
        ``[W, Q]`` or ``[W, Q, K]`` each.

    Raises:
        ValueError: where a score is NaN, or groups, offsets, rows, exclusions or cutoffs are not valid.
    """
    return RankMetrics(
        *torch.ops.placket.rank_metrics(
            queries, candidates, weights, query_groups, group_offsets, group_rows, excluded, cutoffs, block
        )
    )


@torch.library.register_fake("placket::rank_metrics")
def _(
    queries: Sequence[Tensor],
    candidates: Sequence[Tensor],
    weights: Tensor,
    query_groups: Tensor,
    group_offsets: Tensor,
    group_rows: Tensor,
    excluded: Tensor | None,
    cutoffs: Sequence[int],
    block: int | None = None,
) -> tuple[Tensor, ...]:
    return _empty_metrics(weights, (weights.shape[0], queries[0].shape[0]), len(cutoffs))


def rank_metrics_of_scores(
    scores: Tensor,
    query_groups: Tensor,
    group_offsets: Tensor,
    group_rows: Tensor,
    excluded: Tensor | None = None,
    cutoffs: Sequence[int] = (),
) -> RankMetrics:
    """Measure the rankings of given scores ``[Q, C]`` float32; see ``rank_metrics``.

    Returns:
        ``[Q]`` or ``[Q, K]`` each.
    """
    return RankMetrics(
        *torch.ops.placket.rank_metrics_of_scores(
            scores, query_groups, group_offsets, group_rows, excluded, cutoffs
        )
    )


@torch.library.register_fake("placket::rank_metrics_of_scores")
def _(
    scores: Tensor,
    query_groups: Tensor,
    group_offsets: Tensor,
    group_rows: Tensor,
    excluded: Tensor | None,
    cutoffs: Sequence[int],
) -> tuple[Tensor, ...]:
    return _empty_metrics(scores, (scores.shape[0],), len(cutoffs))


def _empty_metrics(like: Tensor, shape: tuple[int, ...], cutoffs: int) -> tuple[Tensor, ...]:
    average = like.new_empty(shape, dtype=torch.float64)
    sums = like.new_empty((*shape, cutoffs), dtype=torch.float64)
    first, hits = average.to(torch.int64), sums.to(torch.int64)
    return average, torch.empty_like(average), hits, sums, first


def region_box(
    attention: Tensor, sizes: Tensor, threshold: float = 0.1, view: int = 224, squashed: bool = False
) -> Tensor:
    """Return the square box of the original image that an attention map points at.

    The map belongs to the centre square of the image, its short side resized to ``view``. Where the upsampled
    map, scaled to 8 bits from its least to its greatest value, exceeds ``floor(255 * threshold)`` is bounded
    by a square (ASEN++, IEEE TIP 2021; RPF, SIGIR 2023). A flat map, and one with a value that is not finite,
    gives the whole centre square. No gradient flows through a box.

    Args:
        attention: ``[N, h, w]`` float32, ``h`` and ``w`` at most ``view``.
        sizes: ``[N, 2]`` int64, height and width of the original images, at least 1.
        threshold: in [0, 1).
        view: side of the model's input.
        squashed: the map belongs to the whole image, both sides resized to ``view``; the box then has the
            image's ratio, and resized to a square shows what the model's input does.

    Returns:
        ``[N, 4]`` int64, x0 y0 x1 y1 in pixels of the original, x1 and y1 exclusive. As published, a square
        of odd side may end one pixel of the view behind its border; ``crop_resize`` reads black there.
    """
    return torch.ops.placket.region_box(attention, sizes, threshold, view, squashed)


@torch.library.register_fake("placket::region_box")
def _(
    attention: Tensor, sizes: Tensor, threshold: float = 0.1, view: int = 224, squashed: bool = False
) -> Tensor:
    return sizes.new_empty(attention.shape[0], 4)


def region_patch_info_nce(
    region: Tensor,
    patch: Tensor,
    background: Tensor,
    labels: Tensor,
    attributes: Tensor,
    temperature: float = 0.07,
    alpha: float = 12.0,
) -> Tensor:
    """Return the E-InfoNCE loss between the region and patch embeddings of a batch (RPF, SIGIR 2023).

    The mean over anchors i of ``-log(sum_pos exp(r_i.p_j / t) / (sum_all exp(r_i.p_j / t) + alpha * sum_same
    exp(r_i.b_k / t)))``: positives are the patches of the anchor's attribute and label, its own among them;
    negatives are all patches, those of other attributes too, and the backgrounds of the anchor's attribute.

    Args:
        region, patch, background: ``[N, E]``, one floating dtype; rows are normalised inside. Three separate
            forwards of a triplet batch are concatenated to N = 3 x triplets.
        labels: ``[N]`` int64, the value of the row's attribute (counted by attribute or over all of them).
        attributes: ``[N]`` int64.
        temperature: above 0.
        alpha: weight of the backgrounds, at least 0.

    Returns:
        A scalar, float32 (float64 for float64 rows); 0 for N = 0, NaN where a row holds a NaN.
    """
    return torch.ops.placket.region_patch_info_nce(
        region, patch, background, labels, attributes, temperature, alpha
    )


@torch.library.register_fake("placket::region_patch_info_nce")
def _(
    region: Tensor,
    patch: Tensor,
    background: Tensor,
    labels: Tensor,
    attributes: Tensor,
    temperature: float = 0.07,
    alpha: float = 12.0,
) -> Tensor:
    return region.new_empty((), dtype=torch.float64 if region.dtype == torch.float64 else torch.float32)


@torch.library.register_fake("placket::_region_patch_info_nce_gradients")
def _(
    region: Tensor,
    patch: Tensor,
    background: Tensor,
    labels: Tensor,
    attributes: Tensor,
    temperature: float,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        region.new_empty((), dtype=torch.float64 if region.dtype == torch.float64 else torch.float32),
        torch.empty_like(region, memory_format=torch.contiguous_format),
        torch.empty_like(patch, memory_format=torch.contiguous_format),
        torch.empty_like(background, memory_format=torch.contiguous_format),
    )


@torch.library.register_fake("placket::_region_patch_info_nce_backward")
def _(
    grad: Tensor,
    grad_region: Tensor,
    grad_patch: Tensor,
    grad_background: Tensor,
    region: Tensor,
    patch: Tensor,
    background: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(grad_region), torch.empty_like(grad_patch), torch.empty_like(grad_background)


def supervised_contrastive(
    embeddings: Tensor,
    labels: Tensor,
    groups: Tensor | None = None,
    temperature: float = 0.1,
    inside: bool = False,
) -> Tensor:
    """Return the supervised contrastive loss of a batch (Khosla et al., NeurIPS 2020).

    Args:
        embeddings: ``[B, D]``; rows are normalised inside.
        labels, groups: as ``batch_hard`` takes them.
        temperature: above 0.
        inside: whether the mean over a row's positives is taken inside the logarithm (the paper's L_in), not
            outside (L_out, which the paper finds better).

    Returns:
        The mean over rows with a positive, float32 (float64 for float64 rows); 0 where there is none.
    """
    return torch.ops.placket.supervised_contrastive(embeddings, labels, groups, temperature, inside)


def tri_hard(
    embeddings: Tensor, labels: Tensor, domains: Tensor | None = None, margin: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the batch-hard triplet loss (Hermans et al., 2017) in Euclidean distances of unit rows.

    The pairs are those of ``batch_hard``; no B x B matrix is in memory.

    Args:
        embeddings: ``[B, D]``; rows are normalised inside.
        labels, domains: as ``batch_hard`` takes them; with domains both partners are of another one
            (MMFL-Net, arXiv 2210.15128, as reconstructed).
        margin: of the hinge ``max(0, d(i, p) - d(i, n) + margin)``; None for
            ``log(1 + e^(d(i, p) - d(i, n)))``.

    Returns:
        The mean over rows with a positive and a negative, and the absolute term, the mean distance to the
        hardest positive over rows with one; float32 (float64 for float64 rows), 0 where no row counts.
    """
    return torch.ops.placket.tri_hard(embeddings, labels, domains, margin)


def value_groups(query_values: Tensor, candidate_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the groups of ``rank_metrics`` where a candidate is relevant when its value equals the query's.

    Their shapes do not depend on the values. With the candidates in the order of their values, group g holds
    those of the g-th value if it is the last of its kind, and none otherwise; group C is for queries whose
    value no candidate has.

    Args:
        query_values: ``[Q]`` int64.
        candidate_values: ``[C]`` int64.

    Returns:
        query_groups ``[Q]``, group_offsets ``[C + 2]`` and group_rows ``[C]``, int64.
    """
    return torch.ops.placket.value_groups(query_values, candidate_values)
