"""Losses for any training loop: modules that are called with ``(embeddings, labels, groups)``.

    loss = placket.losses.BatchHardTripletLoss(margin=0.2)
    for batch in loader:
        loss(model(batch.images), batch.values, batch.attributes).backward()

``embeddings`` are ``[B, D]``, of any floating dtype; losses are float32, or float64 for float64. ``labels``
say which rows are positives of each other:

- ``[B]`` integers: rows of one label; -1 takes no part;
- ``[B, M]`` bool or 0 and 1: sets of classes; rows that share one are positives, a row without any takes no
  part.

All others are negatives. ``groups``, ``[B]`` integers, are attributes for example: only rows of one group
are compared. The losses of pairs also take ``relation`` in place of labels, ``[B, B]`` bool: which rows are
positives of each other, in either order. A batch in which nothing can be compared (no labels, one row, none
at all) has a loss of 0 and a gradient of 0. No loss waits for the device.

``ClipLoss`` and ``SigLipLoss`` compare two sides, images and texts, and are called as open_clip's are:

    scale = placket.losses.clamped_logit_scale(model.logit_scale)
    placket.losses.ClipLoss()(image_features, text_features, scale).backward()
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from placket import ops

__all__ = [
    "BatchHardTripletLoss",
    "CentreLoss",
    "ClipLoss",
    "CosineTripletLoss",
    "MultiPositiveInfoNCE",
    "PrototypeCrossEntropy",
    "SemiHardTripletLoss",
    "SigLipLoss",
    "TriHardLoss",
    "clamped_logit_scale",
    "gather_rows",
    "label_sets",
]


def label_sets(sets: Tensor) -> Tensor:
    """Return sets of classes, 64 to a word, as ``ops.batch_hard`` takes them.

    Args:
        sets: ``[B, M]`` bool, or numbers of which 0 means that a class is not in the set.

    Returns:
        ``[B, W]`` int64, W = M / 64 rounded up.
    """
    rows, classes = sets.shape
    bits = F.pad((sets != 0).long(), (0, -classes % 64)).view(rows, (classes + 63) // 64, 64)
    return (bits << torch.arange(64, device=sets.device)).sum(2)


class CosineTripletLoss(nn.Module):
    """Triplet loss on cosine similarity, ``max(0, margin - cos(a, p) + cos(a, n))``.

    Of given triplets, as ASEN (AAAI 2020) and RPF (SIGIR 2023) draw them, or of all triplets of the batch.
    All of them are summed without being listed: O(B^2) memory, O(B^2 log B) time.

    Args:
        margin: by how much the positive must be nearer.
        mean_of: of "all" triplets, or of the "active" ones, those whose term is above 0; the batch-all losses
            of Hermans et al., 2017.
    """

    def __init__(self, margin: float = 0.2, mean_of: Literal["all", "active"] = "all") -> None:
        super().__init__()
        self.margin = margin
        self.mean_of = _one_of("CosineTripletLoss: mean_of", mean_of, ("all", "active"))

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        groups: Tensor | None = None,
        *,
        relation: Tensor | None = None,
        triplets: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return the loss of ``triplets``, rows of anchors, positives, negatives ``[T]`` each, or of all."""
        rows = _at_least_float32(embeddings)
        if triplets is not None:
            anchor, positive, negative = (rows[role] for role in triplets)
            hinges = ops.cosine_triplet(anchor, positive, negative, self.margin)
            return _mean(hinges, hinges > 0 if self.mean_of == "active" else torch.ones_like(hinges).bool())
        native = _native_labels("CosineTripletLoss", labels, relation)
        positives, negatives = ops.label_relation(native, groups)
        unit = F.normalize(rows, dim=1)
        with torch.autocast(unit.device.type, enabled=False):
            similarity = unit @ unit.T
        # A negative's term is above 0 where its similarity exceeds the pair's threshold: those before a place
        # in the descending order, whose sum is known.
        threshold = similarity - self.margin
        ranked = similarity.masked_fill(~negatives, -1e4).sort(dim=1, descending=True).values
        active = torch.searchsorted(-ranked.detach(), -threshold.detach())
        sums = F.pad(ranked.cumsum(1), (1, 0)).gather(1, active)
        total = (sums - active * threshold).where(positives, 0).sum()
        all_negatives = negatives.sum(1, keepdim=True).expand_as(active)
        counted = active if self.mean_of == "active" else all_negatives
        return total / counted.where(positives, 0).sum().clamp_min(1)


class BatchHardTripletLoss(nn.Module):
    """Triplet loss of each row with its hardest positive and negative (Hermans et al., 2017), on cosine.

    The pairs are found by ``ops.batch_hard``, without a B x B matrix. The mean is over rows that have both.

    Args:
        margin: of the hinge; None for the paper's soft margin, ``log(1 + exp(cos(a, n) - cos(a, p)))``.
    """

    def __init__(self, margin: float | None = 0.2) -> None:
        super().__init__()
        self.margin = margin

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        groups: Tensor | None = None,
        *,
        relation: Tensor | None = None,
    ) -> Tensor:
        rows = _at_least_float32(embeddings)
        native = _native_labels("BatchHardTripletLoss", labels, relation)
        pairs = ops.batch_hard(rows.detach(), native, groups)
        found = (pairs.positive >= 0) & (pairs.negative >= 0)
        return _mean(_triplet_terms(rows, pairs, self.margin), found)


class TriHardLoss(nn.Module):
    """Batch-hard triplet loss in Euclidean distances of unit rows, with MMFL-Net's improvements.

    Hermans et al., 2017; MMFL-Net (arXiv 2210.15128) as reconstructed: with ``domains`` the hardest positive
    and negative of a consumer's photo are shops' photos and the other way round, and an absolute term draws a
    product's rows together. By ``ops.tri_hard``, without a B x B matrix.

    Args:
        margin: of the hinge; None for the soft margin.
        absolute: weight of the mean distance to the hardest positive.
    """

    def __init__(self, margin: float | None = 0.3, absolute: float = 0.1) -> None:
        super().__init__()
        self.margin = margin
        self.absolute = absolute

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        domains: Tensor | None = None,
        *,
        relation: Tensor | None = None,
    ) -> Tensor:
        """Return the loss; ``domains`` are ``[B]`` int64, 0 of shops and 1 of consumers for example."""
        rows = _at_least_float32(embeddings)
        native = _native_labels("TriHardLoss", labels, relation)
        triplet, distance = ops.tri_hard(rows, native, domains, self.margin)
        return triplet + self.absolute * distance


class SemiHardTripletLoss(nn.Module):
    """Triplet loss of each row with a semi-hard negative (Schroff et al., "FaceNet", CVPR 2015), on cosine.

    That negative is the most similar one that is less similar than the row's positive, which is its hardest
    one (FaceNet takes each of its positives); it is found by ``ops.batch_hard``, without a B x B matrix. The
    mean is over rows that have both.

    Args:
        margin: of the hinge.
        otherwise: what a row takes that has negatives, but none less similar: its "easiest" one, which is the
            nearest to that, or "none", which leaves the row out.
    """

    def __init__(self, margin: float = 0.2, otherwise: Literal["easiest", "none"] = "easiest") -> None:
        super().__init__()
        self.margin = margin
        self.otherwise = _one_of("SemiHardTripletLoss: otherwise", otherwise, ("easiest", "none"))

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        groups: Tensor | None = None,
        *,
        relation: Tensor | None = None,
    ) -> Tensor:
        rows = _at_least_float32(embeddings)
        native = _native_labels("SemiHardTripletLoss", labels, relation)
        pairs = ops.batch_hard(rows.detach(), native, groups, semi_hard=True)
        found = (pairs.positive >= 0) & (pairs.negative >= 0)
        if self.otherwise == "none":
            found &= ~(pairs.negative_similarity >= pairs.positive_similarity)
        return _mean(_triplet_terms(rows, pairs, self.margin), found)


class MultiPositiveInfoNCE(nn.Module):
    """InfoNCE with several positives: the supervised contrastive loss (Khosla et al., NeurIPS 2020).

    The mean over rows with a positive of ``-log(exp(cos_p / t) / sum_a exp(cos_a / t))``, averaged over its
    positives p; a runs over its positives and negatives.

    Args:
        temperature: above 0.
        positives: average "outside" the logarithm (L_out, equation 2, which the paper finds better), or
            "inside" (L_in, equation 3).
    """

    def __init__(self, temperature: float = 0.1, positives: Literal["outside", "inside"] = "outside") -> None:
        super().__init__()
        self.temperature = temperature
        self.positives = _one_of("MultiPositiveInfoNCE: positives", positives, ("outside", "inside"))

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        groups: Tensor | None = None,
        *,
        relation: Tensor | None = None,
    ) -> Tensor:
        native = _native_labels("MultiPositiveInfoNCE", labels, relation)
        return ops.supervised_contrastive(
            embeddings, native, groups, self.temperature, inside=self.positives == "inside"
        )


def clamped_logit_scale(log_scale: Tensor, maximum: float = 100.0) -> Tensor:
    """Return ``exp(log_scale)``, at most ``maximum`` and at least 1.

    ``log_scale``, a parameter, is clamped in place before it is used, which is what CLIP does after each step
    of the optimizer: at the bound it still learns, as it would not behind a clamp in the forward pass. CLIP
    begins with ``log(1 / 0.07)``, SigLIP with ``log(10)``, which it does not clamp, and a bias of -10.
    """
    with torch.no_grad():
        log_scale.clamp_(0, math.log(maximum))
    return log_scale.exp()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, rows, group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total.chunk(dist.get_world_size(ctx.group))[dist.get_rank(ctx.group)], None


def gather_rows(rows: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Return the rows of all ranks, ``[N, ...]`` of each, joined in rank order; N is the same on every rank.

    The gradient of a rank's rows is the sum of what the losses of all ranks ask of them. So after gradients
    of parameters have been averaged over ranks, as DistributedDataParallel does, they are those of the mean
    of the ranks' losses. Without a process group there is one rank.
    """
    if not _several_ranks(group):
        return rows
    joined: Tensor = _GatherRows.apply(rows.contiguous(), group)  # type: ignore[no-untyped-call]
    return joined


class _LossOfSides(nn.Module):
    def __init__(self, gather: bool, group: dist.ProcessGroup | None) -> None:
        super().__init__()
        self.gather = gather
        self.group = group

    def _labels(
        self, labels: Tensor | None, text_labels: Tensor | None, relation: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return labels as the operators take them; None for the diagonal."""
        user = type(self).__name__
        if text_labels is not None and labels is None:
            raise ValueError(f"{user}: text_labels must come with labels, got them alone")
        if labels is None and relation is None:
            return None, None
        native = _native_labels(user, labels, relation)
        return native, None if text_labels is None else _native_labels(user, text_labels, None)

    def _gathers(self, relation: Tensor | None, valid: Tensor | None) -> bool:
        if not self.gather or not _several_ranks(self.group):
            return False
        for name, given in (("relation", relation), ("valid", valid)):
            if given is not None:
                raise ValueError(
                    f"{type(self).__name__}: {name} must be absent with several ranks, whose rows it does "
                    f"not know, got shape {list(given.shape)}; give labels"
                )
        return True

    def _labels_of_ranks(
        self, images: Tensor, labels: Tensor | None, text_labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return labels of this rank's images and of its texts; its own rows have labels of their own."""
        if labels is None:
            first = dist.get_rank(self.group) * len(images)
            labels = torch.arange(first, first + len(images), device=images.device)
        return labels, labels if text_labels is None else text_labels

    def _mean_of_ranks(self, total: Tensor, count: Tensor) -> Tensor:
        """Return this rank's share of a mean: the mean over ranks of what they return is that mean."""
        every = count.detach().clone()
        dist.all_reduce(every, group=self.group)
        return total * (dist.get_world_size(self.group) / every.clamp_min(1))


class ClipLoss(_LossOfSides):
    """InfoNCE between images and texts (CLIP: Radford et al., ICML 2021), by ``ops.info_nce``.

    No B x B matrix is in memory. With labels each image has several positive texts, and the target of its
    softmax is uniform over them, so that duplicates are no negatives. A row without a positive takes no part.

    Args:
        symmetric: the mean of image to text and text to image; otherwise image to text alone.
        gather: with ``torch.distributed``, compare with the features of all ranks, each of which has the same
            number of rows. Each rank computes the terms of its own rows; the mean of the ranks' losses is the
            loss of the joined batch, and gradients of parameters averaged over ranks, as
            DistributedDataParallel does, are those of it.
        group: of the ranks; None for all.
    """

    def __init__(
        self, symmetric: bool = True, gather: bool = False, group: dist.ProcessGroup | None = None
    ) -> None:
        super().__init__(gather, group)
        self.symmetric = symmetric

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        labels: Tensor | None = None,
        text_labels: Tensor | None = None,
        *,
        relation: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Return the loss.

        Args:
            image_features: ``[B, D]`` at unit length, as open_clip gives them; not normalised here.
            text_features: ``[M, D]``, of the same dtype outside of autocast.
            logit_scale: above 0, the inverse of the temperature.
            labels: of the images, see the module; None: image i and text i are each other's only positive.
            text_labels: of the texts; None: those of the images.
            relation: in place of labels, ``[B, M]`` bool: which pairs are positive.
            valid: ``[B, M]`` bool: pairs that are not are neither positives nor negatives.
        """
        scale = _scalar(logit_scale, image_features)
        own, own_texts = self._labels(labels, text_labels, relation)
        if not self._gathers(relation, valid):
            return ops.info_nce(
                image_features, text_features, scale, own, own_texts, valid, symmetric=self.symmetric
            )
        own, own_texts = self._labels_of_ranks(image_features, own, own_texts)
        loss = self._of_rows(image_features, text_features, scale, own, own_texts)
        if self.symmetric:
            loss = (loss + self._of_rows(text_features, image_features, scale, own_texts, own)) / 2
        return loss

    def _of_rows(
        self, rows: Tensor, others: Tensor, scale: Tensor, labels: Tensor, of_others: Tensor
    ) -> Tensor:
        every, every_label = gather_rows(others, self.group), gather_rows(of_others, self.group)
        terms = ops.info_nce_terms(rows, every, scale, labels, every_label, symmetric=False)
        return self._mean_of_ranks(terms.rows.sum(), (terms.row_positives > 0).sum())


class SigLipLoss(_LossOfSides):
    """Pairwise sigmoid loss between images and texts (SigLIP: Zhai et al., ICCV 2023).

    By ``ops.pairwise_sigmoid``, without a B x B matrix: the sum over pairs, divided by the images.

    Args:
        gather, group: see ``ClipLoss``. Each rank compares its own images with the texts of all.
    """

    def __init__(self, gather: bool = False, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(gather, group)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        labels: Tensor | None = None,
        text_labels: Tensor | None = None,
        *,
        relation: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Return the loss; arguments are ``ClipLoss``'s, and ``logit_bias`` is added to the logits."""
        scale = _scalar(logit_scale, image_features)
        bias = None if logit_bias is None else _scalar(logit_bias, image_features)
        own, own_texts = self._labels(labels, text_labels, relation)
        if not self._gathers(relation, valid):
            return ops.pairwise_sigmoid(image_features, text_features, scale, bias, own, own_texts, valid)
        own, own_texts = self._labels_of_ranks(image_features, own, own_texts)
        texts, their_labels = gather_rows(text_features, self.group), gather_rows(own_texts, self.group)
        total, images = ops.pairwise_sigmoid_sum(image_features, texts, scale, bias, own, their_labels)
        return self._mean_of_ranks(total, images)


class _ClassLoss(nn.Module):
    """The classes of the attributes, one after another: ``owners[c]`` is the attribute of class c."""

    owners: Tensor
    offsets: Tensor

    def __init__(self, values: int | Sequence[int]) -> None:
        super().__init__()
        counts = torch.tensor([values] if isinstance(values, int) else list(values), dtype=torch.int64)
        owners = torch.arange(len(counts)).repeat_interleave(counts)
        self.register_buffer("owners", owners, persistent=False)
        self.register_buffer("offsets", counts.cumsum(0) - counts, persistent=False)

    def _classes(self, labels: Tensor, groups: Tensor | None) -> Tensor:
        """Return the class of each row, -1 for none, or the sets of them, ``[B, C]`` bool."""
        name, classes = type(self).__name__, len(self.owners)
        if labels.dim() == 2:
            if labels.shape[1] != classes:
                raise ValueError(
                    f"{name}: labels must have shape [B, {classes}] for sets, got {list(labels.shape)}"
                )
            return labels != 0
        first = 0 if groups is None else self.offsets[groups]
        found = (first + labels).where(labels >= 0, -1)
        # On CUDA the check would wait for the device.
        if found.device.type == "cpu" and not torch.compiler.is_compiling():
            beyond = found >= classes
            if groups is not None:
                beyond |= (found >= 0) & (self.owners[found.clamp(0, classes - 1)] != groups)
            if beyond.any():
                raise ValueError(
                    f"{name}: labels must be below the number of their attribute's values, got "
                    f"{labels[beyond][0]}"
                )
        return found


class PrototypeCrossEntropy(_ClassLoss):
    """Cross-entropy of scaled cosines to learnt class centres (Wang et al., "NormFace", ACM MM 2017).

    The softmax runs over the values of the row's attribute. A row with several classes has the mean of their
    terms. A class without an image stays a competitor of the others and gets a gradient as such.

    Args:
        values: number of classes, or of the values of each attribute (``schema.value_counts``).
        embedding_dim: D.
        scale: of the cosines; the inverse of a temperature.

    Attributes:
        centres: ``[C, D]``, a parameter; only directions count.
    """

    def __init__(self, values: int | Sequence[int], embedding_dim: int, scale: float = 16.0) -> None:
        super().__init__(values)
        self.scale = scale
        self.centres = nn.Parameter(torch.randn(len(self.owners), embedding_dim))

    def forward(self, embeddings: Tensor, labels: Tensor, groups: Tensor | None = None) -> Tensor:
        """Return the loss.

        Args:
            embeddings: ``[B, D]``.
            labels: ``[B]``, the value of each row's attribute, -1 for none; without ``groups`` its class,
                which counts the values of all attributes in order. Or ``[B, C]`` sets of classes.
            groups: ``[B]``, each row's attribute; needed for sets where there is more than one.
        """
        classes = self._classes(labels, groups)
        if groups is None:
            groups = self._attributes(classes)
        rows = _at_least_float32(embeddings)
        centres = self.centres.to(rows)
        return ops.centre_cross_entropy(rows, centres, self.owners, groups, classes, self.scale)

    def _attributes(self, classes: Tensor) -> Tensor:
        if len(self.offsets) == 1:
            return classes.new_zeros(len(classes), dtype=torch.int64)
        if classes.dim() == 2:
            raise ValueError(
                f"PrototypeCrossEntropy: groups must say which of {len(self.offsets)} attributes each set of "
                "classes is of, got None"
            )
        return self.owners[classes.clamp_min(0)]


class CentreLoss(_ClassLoss):
    """Squared distance to the centre of a row's class (Wen et al., ECCV 2016), ``|x - c|^2 / 2``.

    The mean over rows with a class; a row with several has the mean of its terms. In training mode each call
    then moves the centres of the batch's classes by the paper's equation 4, ``rate * sum_i (x_i - c) / (1 +
    n)`` over the class's n rows: a class without a row in the batch stays where it is. Embeddings are not
    normalised. With one label a row only the batch's centres are read and written.

    Args:
        values: number of classes, or of the values of each attribute (``schema.value_counts``).
        embedding_dim: D.
        rate: of the centres, in [0, 1]; 0.5 in the paper.

    Attributes:
        centres: ``[C, D]`` float32, a buffer.
    """

    centres: Tensor

    def __init__(self, values: int | Sequence[int], embedding_dim: int, rate: float = 0.5) -> None:
        super().__init__(values)
        self.rate = rate
        self.register_buffer("centres", torch.randn(len(self.owners), embedding_dim))

    def forward(self, embeddings: Tensor, labels: Tensor, groups: Tensor | None = None) -> Tensor:
        """Return the loss; labels and groups are ``PrototypeCrossEntropy``'s, sets need no groups."""
        rows = _at_least_float32(embeddings)
        classes = self._classes(labels, groups)
        with torch.autocast(rows.device.type, enabled=False):
            return self._of_sets(rows, classes) if classes.dim() == 2 else self._of_labels(rows, classes)

    def _of_labels(self, rows: Tensor, classes: Tensor) -> Tensor:
        known = classes >= 0
        own = classes.clamp_min(0)
        difference = rows - self.centres[own]
        if self.training:
            with torch.no_grad():
                count = self.centres.new_zeros(len(self.centres)).index_add_(0, own, known.to(self.centres))
                share = known / (1 + count[own])
                step = (difference * share[:, None]).to(self.centres)
                self.centres.index_add_(0, own, step, alpha=self.rate)
        return _mean(difference.square().sum(1) / 2, known)

    def _of_sets(self, rows: Tensor, sets: Tensor) -> Tensor:
        member = sets.to(self.centres)
        size = member.sum(1, keepdim=True)
        share = member / size.clamp_min(1)
        mean = share @ self.centres
        # The mean of |x - c|^2 is |x - mean|^2 and the spread of the centres about their mean.
        spread = share @ self.centres.square().sum(1) - mean.square().sum(1)
        terms = ((rows - mean).square().sum(1) + spread) / 2
        if self.training:
            with torch.no_grad():
                count = member.sum(0)[:, None]
                step = (member.T @ rows.to(member) - count * self.centres) / (1 + count)
                self.centres.add_(step, alpha=self.rate)
        return _mean(terms, size.squeeze(1) > 0)


def _one_of(argument: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(choices)}, got '{value}'")
    return value


def _native_labels(user: str, labels: Tensor | None, relation: Tensor | None) -> Tensor:
    """Return labels, sets or a relation as the operators take them."""
    if (labels is None) == (relation is None):
        raise ValueError(
            f"{user}: either labels or relation must be given, got {'neither' if labels is None else 'both'}"
        )
    if relation is not None:
        if relation.dtype != torch.bool:
            raise TypeError(f"{user}: relation must be bool, got {relation.dtype}")
        return relation
    assert labels is not None
    return label_sets(labels) if labels.dim() == 2 else labels.long()


def _several_ranks(group: dist.ProcessGroup | None) -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def _scalar(value: Tensor | float, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.reshape(())
    return torch.full((), value, dtype=torch.float32, device=like.device)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Return the mean of the values that count, 0 where none does."""
    return values.where(counted, 0).sum() / counted.sum().clamp_min(1)


def _triplet_terms(rows: Tensor, pairs: ops.HardPairs, margin: float | None) -> Tensor:
    """Return the term of each row, of any value where a row has no positive or negative."""
    positive, negative = (rows[partner.clamp_min(0)] for partner in (pairs.positive, pairs.negative))
    if margin is not None:
        return ops.cosine_triplet(rows, positive, negative, margin)
    anchor, positive, negative = (F.normalize(x, dim=1) for x in (rows, positive, negative))
    return F.softplus((anchor * negative).sum(1) - (anchor * positive).sum(1))
