"""Composed retrieval from cached features: an image and a text ask for another image.

The towers stay as they are, so their features are computed once and kept in a file (``CachedFeatures``). A
composition (``placket.nn.Composition``) learns on them in minutes (``fit``), embeds queries
(``compose_queries``) and is measured (``recall_at``; ``placket.protocols.composed_recall`` to cite)::

    images = CachedFeatures.open("images.features", model=tower_digest)
    texts = CachedFeatures.open("texts.features", model=tower_digest)
    composition = fit(placket.nn.Composition("agcn", images.dims), images, texts, triplets)
    queries = compose_queries(composition, images, texts, reference, text).query
    recall_at(queries, images.embedding, target)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from placket import _C
from placket.config import ScheduleConfig
from placket.nn import Composed
from placket.protocols._ranking import rank, relevance
from placket.runs import replacing

__all__ = [
    "CachedFeatures",
    "ComposedTrainer",
    "FitConfig",
    "Triplets",
    "compose_queries",
    "digest_of",
    "fit",
    "masked_cross_entropy",
    "recall_at",
]

Module = TypeVar("Module", bound=nn.Module)

_FORMAT = "placket-features/1"
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.bool: "BOOL"}


@dataclass(frozen=True)
class CachedFeatures:
    """Features of n images or texts, in memory or in a file mapped into it.

    The file is of the safetensors format, with ``model`` and ``items`` in its header.
    """

    embedding: Tensor
    """``[n, D]`` float32, bfloat16 or float16, of any length."""
    tokens: Tensor | None = None
    """``[n, P, D]`` of the same dtype: patches or words in the same space."""
    mask: Tensor | None = None
    """``[n, P]`` bool, true where a token is; None where all are. Tokens elsewhere must be finite."""
    model: str = ""
    """What made the features, ``digest_of`` the tower for example."""
    items: str = ""
    """What was embedded, a hash of the list of files for example."""

    def __post_init__(self) -> None:
        embedding, tokens, mask = self.embedding, self.tokens, self.mask
        if embedding.dim() != 2 or 0 in embedding.shape:
            raise ValueError(
                f"CachedFeatures: embedding must have shape [n, D] of at least 1, got {list(embedding.shape)}"
            )
        if embedding.dtype not in _DTYPES or embedding.dtype == torch.bool:
            raise TypeError(
                f"CachedFeatures: embedding must be float32, bfloat16 or float16, got {embedding.dtype}"
            )
        n, dims = embedding.shape
        if tokens is not None and (tokens.dim() != 3 or tokens.shape[::2] != (n, dims)):
            raise ValueError(
                f"CachedFeatures: tokens must have shape [{n}, P, {dims}], got {list(tokens.shape)}"
            )
        if tokens is not None and tokens.dtype != embedding.dtype:
            raise TypeError(
                f"CachedFeatures: tokens must be {embedding.dtype} like embedding, got {tokens.dtype}"
            )
        if mask is not None and (tokens is None or mask.shape != tokens.shape[:2]):
            want = "be None without tokens" if tokens is None else f"have shape {list(tokens.shape[:2])}"
            raise ValueError(f"CachedFeatures: mask must {want}, got one of shape {list(mask.shape)}")
        if mask is not None and mask.dtype != torch.bool:
            raise TypeError(f"CachedFeatures: mask must be bool, got {mask.dtype}")

    def __len__(self) -> int:
        return len(self.embedding)

    @property
    def dims(self) -> int:
        """D."""
        return self.embedding.shape[1]

    def take(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return embedding, tokens and mask of some rows, float32 on a device."""

        def taken(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.index_select(0, rows.to(tensor.device)).to(device)

        embedding = self.embedding.index_select(0, rows.to(self.embedding.device)).to(device).float()
        tokens = taken(self.tokens)
        return embedding, None if tokens is None else tokens.float(), taken(self.mask)

    @classmethod
    def write(
        cls,
        path: str | os.PathLike[str],
        parts: Iterable[CachedFeatures],
        *,
        count: int,
        model: str,
        items: str = "",
    ) -> Self:
        """Write features as they come, at once and whole, and return them mapped.

        Args:
            path: of the file; an older one stays until the new one is whole.
            parts: one after another, on any device; their own ``model`` and ``items`` do not matter.
            count: of all rows together.
            model, items: see the fields.

        Raises:
            ValueError: the parts do not agree in shape or dtype, or have not ``count`` rows together.
        """
        places: dict[str, _Place] = {}
        done = 0
        with replacing(path) as file:
            for part in parts:
                arrays = part._arrays()
                if not places:
                    header, places = _layout(arrays, count, model, items)
                    file.write(header)
                got = {name: (array.dtype, tuple(array.shape[1:])) for name, array in arrays.items()}
                want = {name: (place.dtype, place.row) for name, place in places.items()}
                if got != want:
                    raise ValueError(f"CachedFeatures: parts must be alike, got rows {got} after {want}")
                if done + len(part) > count:
                    raise ValueError(f"CachedFeatures: parts must have {count} rows together, got more")
                for name, array in arrays.items():
                    file.seek(places[name].begin + done * places[name].row_bytes)
                    file.write(array.detach().cpu().contiguous().view(torch.uint8).numpy().data)
                done += len(part)
            if done != count or done == 0:
                raise ValueError(f"CachedFeatures: parts must have {count} rows together, got {done}")
        return cls.open(path, model=model, items=items)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, model: str | None = None, items: str | None = None
    ) -> Self:
        """Map a file that ``write`` wrote; rows are read when they are used.

        Args:
            path: of the file.
            model, items: what it must say; None takes any.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, no file of features, or of another model or other items.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"CachedFeatures: '{path}' must be a file, got none; write it first")
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except SafetensorError as error:
            raise ValueError(
                f"CachedFeatures: '{path}' must be a whole safetensors file, got one with {error}"
            ) from error
        if about.get("format") != _FORMAT:
            raise ValueError(
                f"CachedFeatures: '{path}' must have format {_FORMAT}, got {about.get('format')!r}"
            )
        for what, want in (("model", model), ("items", items)):
            if want is not None and about[what] != want:
                raise ValueError(
                    f"CachedFeatures: {what} of '{path}' must be '{want}', got '{about[what]}'; embed again"
                )
        return cls(**arrays, model=about["model"], items=about["items"])

    def _arrays(self) -> dict[str, Tensor]:
        given = {"embedding": self.embedding, "tokens": self.tokens, "mask": self.mask}
        return {name: array for name, array in given.items() if array is not None}


class _Place(NamedTuple):
    """Where an array of a file lies."""

    begin: int
    dtype: torch.dtype
    row: tuple[int, ...]
    row_bytes: int


def _layout(arrays: dict[str, Tensor], count: int, model: str, items: str) -> tuple[bytes, dict[str, _Place]]:
    """Return the beginning of a file of ``count`` rows like those of the arrays, and where its arrays go."""
    header: dict[str, Any] = {"__metadata__": {"format": _FORMAT, "model": model, "items": items}}
    offsets: dict[str, int] = {}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + count * array[0].numel() * array.element_size()
        offsets[name] = begin
        header[name] = {
            "dtype": _DTYPES[array.dtype],
            "shape": [count, *array.shape[1:]],
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64 + 56)  # the arrays begin at a multiple of 64
    beginning = len(text).to_bytes(8, "little") + text
    return beginning, {
        name: _Place(
            len(beginning) + offsets[name],
            array.dtype,
            tuple(array.shape[1:]),
            array[0].numel() * array.element_size(),
        )
        for name, array in arrays.items()
    }


def digest_of(module: nn.Module, *about: str) -> str:
    """Return the SHA-256 of a module's tensors with their names, and of texts such as its preprocessing."""
    digest = hashlib.sha256()
    for text in about:
        digest.update(f"{len(text.encode())}\n{text}".encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Triplets(NamedTuple):
    """m examples: this image and this text ask for that image."""

    reference: Tensor
    """``[m]`` int64 rows of the images."""
    text: Tensor
    """``[m]`` int64 rows of the texts; or ``[m, c]``, of which one is drawn for each epoch, as of the orders
    in which captions may be joined."""
    target: Tensor
    """``[m]`` int64 rows of the images."""


@dataclass(frozen=True)
class FitConfig:
    """How a composition is trained.

    Attributes:
        epochs: passes over the triplets; what a last batch would lack is left out.
        batch: triplets, each other's negatives; all of them where there are fewer.
        lr: of AdamW.
        weight_decay: of AdamW, decoupled.
        schedule: of the rate.
        scale: of the cosines in the loss.
        seed: of order, choice of texts and dropout, which depend on nothing else and the step.
    """

    epochs: int = 30
    batch: int = 512
    lr: float = 1e-4
    weight_decay: float = 1e-2
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(kind="cosine"))
    scale: float = 100.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"FitConfig: {name} must be at least 1, got {getattr(self, name)}")


def masked_cross_entropy(queries: Tensor, targets: Tensor, ids: Tensor, scale: float) -> Tensor:
    """Return the batch classification loss: each query finds its own target among those of the batch.

    The mean of ``-log softmax_j(scale q_i . y_j)`` at j = i (CLIP4Cir). Where two have the same target, that
    of the other is no negative.

    Args:
        queries: ``[N, D]`` unit rows.
        targets: ``[N, D]`` unit rows.
        ids: ``[N]`` which image each target is.
        scale: of the cosines.
    """
    logits = scale * queries @ targets.T
    others = torch.eye(len(ids), dtype=torch.bool, device=ids.device).logical_not()
    logits = logits.masked_fill((ids[:, None] == ids) & others, float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(ids), device=ids.device))


class ComposedTrainer:
    """Training of a composition on cached features.

    Every step is a function of the weights, the optimizer's state and its number; so a run that was resumed
    from ``state()`` ends in the same bits as one that was not.

    Args:
        composition: ``placket.nn.Composition``, or a module that is called alike; it is trained where it is.
        images: of the triplets' references and targets. Their embeddings are what is found: the plain
            features, as in CLIP4Cir.
        texts: of the triplets' texts.
        triplets: to learn from.
        config: how.

    Raises:
        ValueError: there is nothing to train, or a row is outside of the features.
    """

    def __init__(
        self,
        composition: nn.Module,
        images: CachedFeatures,
        texts: CachedFeatures,
        triplets: Triplets,
        config: FitConfig | None = None,
    ) -> None:
        self.config = FitConfig() if config is None else config
        self.composition, self.images, self.texts = composition, images, texts
        self.triplets = _checked(triplets, images, texts)
        parameters = [p for p in composition.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("ComposedTrainer: composition must have parameters to train, got none")
        self.device = parameters[0].device
        self.optimizer = torch.optim.AdamW(
            parameters, lr=self.config.lr, weight_decay=self.config.weight_decay
        )
        self._schedule = _C.Schedule()
        for key, value in dataclasses.asdict(self.config.schedule).items():
            setattr(self._schedule, key, value)
        self.steps_per_epoch = max(1, len(self.triplets.target) // self.config.batch)
        self.steps = self.config.epochs * self.steps_per_epoch
        self.done = 0
        self._plan: tuple[int, Tensor, Tensor] | None = None

    def step(self) -> Tensor:
        """Train on the next batch and return its loss, a scalar that stays on the device."""
        rows, text = self._batch()
        reference, target = self.triplets.reference[rows], self.triplets.target[rows]
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * _C.rate_factor(
                self._schedule, self.done, self.steps_per_epoch, self.steps
            )
        self.composition.train()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(_C.step_seed(self.config.seed, self.done, 0))  # of dropout
            query = _composed(self.composition, self.images, self.texts, reference, text, self.device).query
        wanted = self.images.embedding.index_select(0, target).to(self.device).float()
        loss = masked_cross_entropy(
            query.float(), F.normalize(wanted, dim=1), target.to(self.device), self.config.scale
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.done += 1
        return loss.detach()

    def run(self, report: Callable[[int, float], None] | None = None) -> None:
        """Train to the end.

        Args:
            report: is called after each epoch with its number, from 1, and the mean loss of its steps since
                this call; training may go on after it raised.
        """
        losses: list[Tensor] = []
        while self.done < self.steps:
            losses.append(self.step())
            if self.done % self.steps_per_epoch == 0:
                mean = torch.stack(losses).mean()
                losses.clear()
                if report is not None:
                    report(self.done // self.steps_per_epoch, mean.item())
        self.composition.eval()

    def state(self) -> dict[str, Any]:
        """Return what ``load_state`` goes on from: tensors, numbers and texts, copied."""
        return {
            "step": self.done,
            "config": dataclasses.asdict(self.config),
            "composition": {name: x.detach().clone() for name, x in self.composition.state_dict().items()},
            "optimizer": _copied(self.optimizer.state_dict()),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` returned.

        Raises:
            ValueError: it is of another configuration.
            RuntimeError: it is of another composition.
        """
        if state["config"] != dataclasses.asdict(self.config):
            raise ValueError(
                f"ComposedTrainer: state must be of the configuration {self.config}, got {state['config']}"
            )
        self.composition.load_state_dict(state["composition"])
        self.optimizer.load_state_dict(_copied(state["optimizer"]))
        self.done = state["step"]

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Return the triplets of the next step, and the text of each."""
        epoch, place = divmod(self.done, self.steps_per_epoch)
        if self._plan is None or self._plan[0] != epoch:
            count, choices = len(self.triplets.target), self.triplets.text.shape[1]
            random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.config.seed, epoch])))
            order = torch.from_numpy(random.permutation(count))
            choice = torch.from_numpy(random.integers(choices, size=count))
            self._plan = epoch, order, self.triplets.text.gather(1, choice[:, None]).squeeze(1)
        _, order, text = self._plan
        rows = order[place * self.config.batch : (place + 1) * self.config.batch]
        return rows, text[rows]


def fit(
    composition: Module,
    images: CachedFeatures,
    texts: CachedFeatures,
    triplets: Triplets,
    config: FitConfig | None = None,
    report: Callable[[int, float], None] | None = None,
) -> Module:
    """Train a composition and return it, in evaluation mode; see ``ComposedTrainer`` and its ``run``."""
    ComposedTrainer(composition, images, texts, triplets, config).run(report)
    return composition


@torch.no_grad()
def compose_queries(
    composition: nn.Module,
    images: CachedFeatures,
    texts: CachedFeatures,
    reference: Tensor,
    text: Tensor,
    batch: int = 1024,
) -> Composed:
    """Compose queries in evaluation mode.

    Args:
        composition: as ``ComposedTrainer`` takes it, or one without weights.
        images, texts: their features.
        reference, text: ``[m]`` int64, a row of each for every query.
        batch: queries at a time; does not change them but for rounding.

    Returns:
        query ``[m, D]`` float32, unit rows, and image_share ``[m]``, on the CPU.
    """
    device = next((p.device for p in composition.parameters()), torch.device("cpu"))
    training = composition.training
    composition.eval()
    try:
        found = [
            _composed(composition, images, texts, rows, words, device)
            for rows, words in zip(reference.split(batch), text.split(batch), strict=True)
        ]
    finally:
        composition.train(training)
    return Composed(
        torch.cat([part.query.float().cpu() for part in found]),
        torch.cat([part.image_share.float().cpu() for part in found]),
    )


def recall_at(
    queries: Tensor,
    gallery: Tensor,
    targets: Tensor,
    k: Sequence[int] = (10, 50),
    *,
    references: Tensor | None = None,
) -> dict[int, float]:
    """Return the share of queries whose target is among the first k of the gallery, by k.

    Quick figures to watch a training; ``placket.protocols.composed_recall`` gives intervals and what makes a
    figure comparable.

    Args:
        queries: ``[m, D]``.
        gallery: ``[n, D]``; both are L2-normalised here. Equal cosines go by row.
        targets: ``[m]`` row of the gallery that each query seeks.
        k: each at least 1.
        references: ``[m]`` row that is none of a query's candidates, its own image for example, -1 for none;
            by default all are candidates.

    Raises:
        ValueError: numbers of queries, targets and references differ.
    """
    for name, rows in (("targets", targets), ("references", references)):
        if rows is not None and rows.shape != (len(queries),):
            raise ValueError(f"recall_at: {name} must have shape [{len(queries)}], got {list(rows.shape)}")
    relevant = relevance(
        targets.cpu().numpy(),
        np.arange(len(gallery)),
        excluded=None if references is None else references.cpu().numpy(),
    )
    sides = [F.normalize(rows.float(), dim=1) for rows in (queries, gallery)]
    first = rank(sides[:1], sides[1:], relevant, [1]).first[0]
    return {cutoff: float(((first >= 1) & (first <= cutoff)).mean()) for cutoff in k}


def _composed(
    composition: nn.Module,
    images: CachedFeatures,
    texts: CachedFeatures,
    reference: Tensor,
    text: Tensor,
    device: torch.device,
) -> Composed:
    image, image_tokens, image_mask = images.take(reference, device)
    if image_mask is not None:
        raise ValueError("compose: mask of images must be None, got one; images have all their tokens")
    row, tokens, mask = texts.take(text, device)
    composed: Composed = composition(image, row, image_tokens, tokens, mask)
    return composed


def _checked(triplets: Triplets, images: CachedFeatures, texts: CachedFeatures) -> Triplets:
    """Return triplets on the CPU, their texts as ``[m, c]``."""
    if images.dims != texts.dims:
        raise ValueError(
            f"ComposedTrainer: texts must have {images.dims} dimensions like images, got {texts.dims}"
        )
    reference, text, target = (column.cpu().long() for column in triplets)
    text = text[:, None] if text.dim() == 1 else text
    m = len(target)
    if m == 0 or reference.shape != (m,) or target.shape != (m,) or text.dim() != 2 or len(text) != m:
        shapes = [list(column.shape) for column in triplets]
        raise ValueError(f"ComposedTrainer: triplets must have shapes [m], [m] or [m, c], [m], got {shapes}")
    for name, rows, count in (
        ("reference", reference, len(images)),
        ("text", text, len(texts)),
        ("target", target, len(images)),
    ):
        outside = rows[(rows < 0) | (rows >= count)]
        if len(outside):
            raise ValueError(
                f"ComposedTrainer: {name} must be from 0 to {count - 1}, got {int(outside.flatten()[0])}"
            )
    return Triplets(reference, text, target)


def _copied(value: Any) -> Any:
    """Copy a state dictionary with its tensors."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
