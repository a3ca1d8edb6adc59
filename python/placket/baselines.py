"""Rivals shown beside a model under the same protocol: pixels, frozen features, a plain classifier.

Every function that embeds returns one array for all attributes, ``[N, A, D]`` float32: row ``[n, a]`` is
image ``n`` in the space of attribute ``a``, as ``placket.protocols.embed_from`` takes it. Where attributes
need fewer than ``D`` columns the rest are zero, and a representation that does not depend on the attribute is
repeated. Labels are ``[N, A]`` int64 with -1 where an image has no value. (Chance needs no embedding: it is
the floor in every result of a protocol.)

Embeddings are L2-normalised, to be ranked by cosine. Estimated probabilities of values are not, and are to be
ranked by dot product: that of two images is the estimated probability that they share their value, and to
normalise it away would rank an uncertain candidate like a certain one and understate the rival.

Nothing here reads a file: images, features and batches come from the caller.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pixels(images: Tensor, attributes: int, side: int = 16) -> Tensor:
    """Embed images by their colours on a coarse grid, the mean colour removed.

    Args:
        images: ``[N, 3, H, W]`` uint8.
        attributes: how many attributes to repeat the embedding for.
        side: cells of the grid along each edge.

    Returns:
        ``[N, attributes, 3 * side * side]``, L2-normalised; zero for an image of one colour.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"pixels: images must be uint8 of shape [N, 3, H, W], got {images.dtype} {list(images.shape)}"
        )
    grid = F.adaptive_avg_pool2d(images.float(), side)
    grid = grid - grid.mean(dim=(2, 3), keepdim=True)
    return _repeat(F.normalize(grid.flatten(1), dim=1), attributes)


def pooled(maps: Tensor, attributes: int) -> Tensor:
    """Embed images by the mean of their feature map.

    Args:
        maps: ``[N, C, h, w]`` features of a frozen trunk.
        attributes: how many attributes to repeat the embedding for.

    Returns:
        ``[N, attributes, C]``, L2-normalised.
    """
    return _repeat(F.normalize(maps.float().mean(dim=(2, 3)), dim=1), attributes)


class Ridge(NamedTuple):
    """Result of :func:`ridge`."""

    embeddings: Tensor  # [N, A, V], ranked by dot product
    strengths: list[float]  # the one chosen for each attribute


def ridge(
    train_maps: Tensor,
    train_labels: Tensor,
    valid_maps: Tensor,
    maps: Tensor,
    score: Callable[[Tensor], Sequence[float]],
    strengths: Sequence[float] = (1e1, 1e2, 3e2, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6),
    grid: int = 2,
) -> Ridge:
    """Regress each attribute's values from frozen features and embed images by the predicted probabilities.

    Features are the maps averaged onto a ``grid`` x ``grid`` and flattened; features and one-hot targets are
    centred on the labelled training images and the mean target is added back. For each attribute the strength
    with the best score on ``valid_maps`` is kept, the first one on a tie. Solved in float64.

    Args:
        train_maps: ``[N, C, h, w]``.
        train_labels: ``[N, A]`` values, -1 = absent.
        valid_maps: ``[M, C, h, w]``, on which the strength is chosen.
        maps: ``[K, C, h, w]`` to embed.
        score: takes predictions ``[M, A, V]`` of ``valid_maps``; returns one figure for each attribute,
            larger is better.
        strengths: candidates for lambda in ``|XW - Y|^2 + lambda |W|^2``, all positive.
        grid: cells along each edge.

    Returns:
        predictions ``[K, A, V]``, V the largest number of values, to be ranked by dot product, and the
        strengths chosen.
    """
    if not strengths or min(strengths) <= 0:
        raise ValueError(f"ridge: strengths must be one or more positive numbers, got {list(strengths)}")
    if train_labels.ndim != 2 or len(train_labels) != len(train_maps):
        raise ValueError(
            f"ridge: train_labels must have shape [{len(train_maps)}, A], got {list(train_labels.shape)}"
        )
    features, valid, wanted = (
        F.adaptive_avg_pool2d(m.float(), grid).flatten(1).double() for m in (train_maps, valid_maps, maps)
    )
    attributes, width = train_labels.shape[1], int(train_labels.max()) + 1
    embeddings = torch.zeros(len(maps), attributes, width)
    chosen: list[float] = []
    # All strengths' predictions are kept, so that one call of `score` ranks a strength for every attribute.
    on_valid = torch.zeros(len(strengths), len(valid), attributes, width)
    on_maps = torch.zeros(len(strengths), len(wanted), attributes, width)
    for a in range(attributes):
        labelled = train_labels[:, a] >= 0
        if not labelled.any():
            raise ValueError(f"ridge: train_labels must hold a value of attribute {a}, got none")
        # One decomposition serves every strength, W = U diag(1 / (s + lambda)) U' X'Y, and all attributes
        # that the same images are labelled with.
        if a == 0 or not torch.equal(labelled, train_labels[:, a - 1] >= 0):
            x = features[labelled]
            centre = x.mean(dim=0)
            x = x - centre
            spectrum, basis = torch.linalg.eigh(x.T @ x)
        y = F.one_hot(train_labels[labelled, a], width).double()
        bias = y.mean(dim=0)
        target = basis.T @ (x.T @ (y - bias))
        for i, strength in enumerate(strengths):
            weight = basis @ (target / (spectrum.clamp(min=0) + strength)[:, None])
            on_valid[i, :, a] = ((valid - centre) @ weight + bias).float()
            on_maps[i, :, a] = ((wanted - centre) @ weight + bias).float()
    scores = np.array([list(score(e)) for e in on_valid])
    for a, best in enumerate(scores.argmax(axis=0).tolist()):
        embeddings[:, a] = on_maps[best, :, a]
        chosen.append(strengths[best])
    return Ridge(embeddings, chosen)


class MultiHeadClassifier(nn.Module):
    """A trunk, mean pooling and, for each attribute, one hidden layer and a linear classifier.

    Args:
        trunk: maps ``[B, 3, H, W]`` to ``[B, channels, h, w]``.
        channels: of the trunk's map.
        values: number of values of each attribute.
        dim: width of each attribute's hidden layer, the embedding.
        dropout: on the pooled features and on the hidden layer.
    """

    def __init__(
        self, trunk: nn.Module, channels: int, values: Sequence[int], dim: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if not values or min(values) < 1:
            raise ValueError(
                "MultiHeadClassifier: values must hold one positive number for each attribute, "
                f"got {list(values)}"
            )
        self.trunk = trunk
        self.hidden = nn.ModuleList(nn.Linear(channels, dim) for _ in values)
        self.heads = nn.ModuleList(nn.Linear(dim, n) for n in values)
        self.dropout = nn.Dropout(dropout)

    def hidden_features(self, images: Tensor) -> list[Tensor]:
        """The embedding of each attribute, A tensors ``[B, dim]``, not normalised."""
        features = self.dropout(self.trunk(images).mean(dim=(2, 3)))
        return [F.relu(layer(features)) for layer in self.hidden]

    def classify(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Class logits ``[B, values[a]]`` from what :meth:`hidden_features` returned."""
        return [head(self.dropout(h)) for head, h in zip(self.heads, hidden, strict=True)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Class logits of each attribute, ``[B, values[a]]``."""
        return self.classify(self.hidden_features(images))


def classifier_loss(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Mean over attributes of the cross-entropy of the labelled images.

    Args:
        logits: ``[B, V_a]`` for each of A attributes.
        labels: ``[B, A]``, -1 = absent; an attribute without any label in the batch adds zero.
    """
    if labels.shape[1] != len(logits):
        raise ValueError(f"classifier_loss: labels must have {len(logits)} columns, got {labels.shape[1]}")
    counts = (labels >= 0).sum(dim=0).clamp(min=1)
    losses = [
        F.cross_entropy(x, labels[:, a], ignore_index=-1, reduction="sum") / counts[a]
        for a, x in enumerate(logits)
    ]
    return torch.stack(losses).mean()


def train_classifier(
    model: MultiHeadClassifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    minutes: float | None = None,
    *,
    steps: int | None = None,
    trunk_lr: float = 2e-4,
    head_lr: float = 1e-3,
    weight_decay: float = 0.01,
    freeze_batch_norm: bool = True,
    frozen: Sequence[str] = (),
) -> int:
    """Train with AdamW, the learning rates falling to zero along a half cosine.

    With ``minutes`` the rates follow the clock, so that the classifier gets exactly the time a model got, and
    two runs do not give equal bits; with ``steps`` they do.

    Args:
        model: trained in place and left in evaluation mode.
        batches: images ``[B, 3, H, W]`` and labels ``[B, A]``; training ends early where they do.
        minutes: wall-clock time, loading of batches included.
        steps: to take, instead.
        trunk_lr: learning rate of the trunk.
        head_lr: learning rate of the rest.
        weight_decay: decoupled, of all parameters.
        freeze_batch_norm: run the trunk in evaluation mode, so that BatchNorm keeps its running statistics
            and normalises by them.
        frozen: parameters of the trunk whose names begin with one of these stay as they are.

    Returns:
        the number of steps taken.
    """
    if (minutes is None) == (steps is None):
        raise ValueError(f"train_classifier: minutes or steps must be given, got {minutes} and {steps}")
    name, length = ("steps", steps) if minutes is None else ("minutes", minutes)
    if length is None or length <= 0:
        raise ValueError(f"train_classifier: {name} must be positive, got {length}")
    for key, parameter in model.trunk.named_parameters():
        parameter.requires_grad_(not key.startswith(tuple(frozen)))
    trunk = [parameter for parameter in model.trunk.parameters() if parameter.requires_grad]
    heads = [*model.hidden.parameters(), *model.heads.parameters()]
    groups = [{"params": trunk, "lr": trunk_lr}, {"params": heads, "lr": head_lr}]
    optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay)
    model.train()
    if freeze_batch_norm:
        model.trunk.eval()
    start, taken = time.monotonic(), 0
    for images, labels in batches:
        done = taken if minutes is None else (time.monotonic() - start) / 60
        progress = done / length
        if progress >= 1:
            break
        for group, lr in zip(optimizer.param_groups, (trunk_lr, head_lr), strict=True):
            group["lr"] = lr * (1 + np.cos(np.pi * progress)) / 2
        loss = classifier_loss(model(images), labels)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"train_classifier: loss must be finite, got {loss.item()} at step {taken}; "
                "lower trunk_lr or head_lr"
            )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        taken += 1
    model.eval()
    return taken


class Classified(NamedTuple):
    """What a classifier offers to rank by, both ``[N, A, D]``."""

    embeddings: Tensor  # hidden layer of each attribute, D = dim, L2-normalised
    probabilities: Tensor  # zero beyond an attribute's values, D = most values, ranked by dot product


@torch.inference_mode()
def embed_classifier(model: MultiHeadClassifier, images: Iterable[Tensor], flip: bool = False) -> Classified:
    """Embed batches of images ``[B, 3, H, W]`` by a trained classifier.

    Args:
        model: is put into evaluation mode.
        images: at least one batch.
        flip: average both representations with those of the mirrored image, the embedding renormalised.
    """
    model.eval()
    width = max(head.out_features for head in model.heads if isinstance(head, nn.Linear))
    parts: list[tuple[Tensor, Tensor]] = []
    for batch in images:
        embedding, probability = _represent(model, batch, width)
        if flip:
            mirrored = _represent(model, batch.flip(3), width)
            embedding = F.normalize(embedding + mirrored[0], dim=2)
            probability = (probability + mirrored[1]) / 2
        parts.append((embedding, probability))
    if not parts:
        raise ValueError("embed_classifier: images must hold at least one batch, got none")
    embeddings, probabilities = zip(*parts, strict=True)
    return Classified(torch.cat(embeddings), torch.cat(probabilities))


def _represent(model: MultiHeadClassifier, images: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Normalised embeddings ``[B, A, dim]`` and class probabilities ``[B, A, width]``."""
    hidden = model.hidden_features(images)
    logits = model.classify(hidden)
    padded = [F.pad(x.float().softmax(dim=1), (0, width - x.shape[1])) for x in logits]
    return F.normalize(torch.stack(hidden, dim=1).float(), dim=2), torch.stack(padded, dim=1)


def _repeat(embedding: Tensor, attributes: int) -> Tensor:
    """``[N, D]`` as ``[N, attributes, D]`` without copying."""
    if attributes < 1:
        raise ValueError(f"attributes must be at least 1, got {attributes}")
    return embedding[:, None].expand(-1, attributes, -1)
