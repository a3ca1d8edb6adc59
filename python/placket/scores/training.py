"""One training of the bench: a method, or the rivals, with one seed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from placket import _C, baselines, rivals
from placket.config import TrainConfig
from placket.data import Augment, Dataset, Loader, Preprocess
from placket.evaluate import embed_split
from placket.protocols import Result
from placket.scores.rankings import Ranked, by_region_weight, class_probabilities, rank_both_ways
from placket.scores.settings import Bench
from placket.train import Trainer, stage_model, train

__all__ = ["MIRRORED", "Record", "fit_epochs", "fit_steps", "run_method", "run_rivals"]

MIRRORED = ", mirrored"
"""Ends the name of a ranking by flip averaging."""
_WARM_UP = 3  # steps before the clock starts: first batches, buffers, frequencies


@dataclass(frozen=True)
class Record:
    """What one training of one row of the table gave."""

    title: str
    rankings: dict[str, Result]
    """By "embedding", "agreement", "both"; the same with ``MIRRORED``; "region weight"."""
    valid: dict[str, float]
    """Overall MAP of some of the rankings on "valid", where choices are made."""
    seconds: float
    """Of the training, all stages together."""
    trained_images: int
    """Seen in training, over all steps."""
    images_per_second: float
    """Embedded under every attribute, reading included; 0 where nothing is embedded."""
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        rankings = {name: result.to_dict() for name, result in self.rankings.items()}
        return {**vars(self), "rankings": rankings}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Record:
        rankings = {name: Result.from_dict(saved) for name, saved in data["rankings"].items()}
        return Record(**{**data, "rankings": rankings})


def fit_epochs(config: TrainConfig, data: Dataset, seconds: float) -> list[int]:
    """Return the epochs of each stage that take so many seconds together, at least one each.

    The speed of every stage is measured by training it a little, from weights that are thrown away. Stages
    share the time as they share the recipe's epochs; what whole epochs leave of a stage goes to the first.
    """
    epoch_seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for index, stage in enumerate(config.stages):
            model = stage_model(config, data, index, Path(folder))
            endless = replace(stage, epochs=10**6)
            trainer = Trainer(model, data, endless, loss=config.loss, trainer=config.trainer)
            step = _step_seconds(trainer.run, 0.04 * seconds / len(config.stages))
            epoch_seconds.append(step * trainer.steps / endless.epochs)
            model.save(Path(folder) / "stages" / stage.name)
    total = sum(stage.epochs for stage in config.stages)
    epochs: list[int] = []
    for stage, each in list(zip(config.stages, epoch_seconds, strict=True))[:0:-1]:
        epochs.insert(0, max(1, round(seconds * stage.epochs / total / each)))
    left = seconds - sum(n * each for n, each in zip(epochs, epoch_seconds[1:], strict=True))
    return [max(1, round(left / epoch_seconds[0])), *epochs]


def fit_steps(bench: Bench, data: Dataset, seconds: float) -> int:
    """Return the steps of the classifier that take so many seconds, at least one."""
    classifier, loader = _classifier(bench, data, seed=0)
    batches = rivals.repeated(loader)

    def steps(count: int) -> None:
        _train_classifier(classifier, bench, islice(batches, count), count)

    return max(1, round(seconds / _step_seconds(steps, 0.04 * seconds)))


def _step_seconds(steps: Callable[[int], object], seconds: float) -> float:
    """Return the time of a step, by at least five steps and about so many seconds of them."""
    steps(_WARM_UP)
    start, taken = time.monotonic(), 0
    while taken == 0 or time.monotonic() - start < seconds:
        steps(5)
        taken += 5
    return (time.monotonic() - start) / taken


def run_method(config: TrainConfig, title: str, bench: Bench, data: Dataset, folder: Path) -> Record:
    """Train a method in a folder and rank by it."""
    start = time.monotonic()
    trained = train(config, run=folder, progress=False)
    seconds = time.monotonic() - start
    model = trained.model()
    labels = data.split("train").labels
    train_embeddings, valid = (embed_split(model, data.split(name)) for name in ("train", "valid"))
    start = time.monotonic()
    test = embed_split(model, data.split("test"))
    speed = len(test) / (time.monotonic() - start)

    def both_ways(valid: Tensor, test: Tensor) -> dict[str, Ranked]:
        return rank_both_ways(data, valid, test, class_probabilities(train_embeddings, labels, valid, test))

    ranked = both_ways(valid, test)
    if bench.flip:
        mirrored = (embed_split(model, data.split(name), flip=True) for name in ("valid", "test"))
        ranked |= {name + MIRRORED: found for name, found in both_ways(*mirrored).items()}
    rankings, on_valid = _figures(ranked)
    if model.config.patch_trunk:
        rankings["region weight"] = by_region_weight(data, valid, test)
    return Record(
        title,
        rankings,
        on_valid,
        seconds,
        trained.steps * bench.batch,
        speed,
        sum(parameter.numel() for parameter in model.parameters()),
    )


def run_rivals(bench: Bench, data: Dataset, seed: int, steps: int) -> list[Record]:
    """Rank by the rivals: pixels, the trunk as it is, and a classifier trained for so many steps."""
    generator = torch.Generator().manual_seed(seed)
    trunk = rivals.make_trunk(bench.trunk, bench.trunk_weights, generator)
    size = sum(parameter.numel() for parameter in trunk.parameters())
    start = time.monotonic()
    found = rivals.frozen(trunk, data, "test", _inputs(bench, bench.feature_size))
    seconds = time.monotonic() - start
    speed = found.images_per_second
    return [
        Record("16 x 16 pixels", {"embedding": rivals.pixels(data)}, {}, 0.0, 0, 0.0, 0),
        Record("pooled frozen features", {"embedding": found.pooled}, {}, 0.0, 0, speed, size),
        Record("ridge, 2 x 2 frozen map", {"agreement": found.ridge}, {}, seconds, 0, speed, size),
        _run_classifier(bench, data, seed, steps),
    ]


def _run_classifier(bench: Bench, data: Dataset, seed: int, steps: int) -> Record:
    classifier, loader = _classifier(bench, data, seed)
    start = time.monotonic()
    _train_classifier(classifier, bench, rivals.repeated(loader), steps)
    seconds = time.monotonic() - start
    inputs = _inputs(bench, bench.size)

    def embedded(split: str, flip: bool) -> baselines.Classified:
        return rivals.classified(classifier, data.split(split), inputs, flip=flip)

    start = time.monotonic()
    test = embedded("test", False)
    speed = len(test.embeddings) / (time.monotonic() - start)
    every: dict[str, Ranked] = {}
    for ending, flip in [("", False), (MIRRORED, True)][: 2 if bench.flip else 1]:
        valid, test = embedded("valid", flip), embedded("test", flip)
        probabilities = [(valid.probabilities, test.probabilities)]
        ranked = rank_both_ways(data, valid.embeddings, test.embeddings, probabilities)
        every |= {name + ending: found for name, found in ranked.items()}
    size = sum(parameter.numel() for parameter in classifier.parameters())
    tests, valids = _figures(every)
    return Record("plain classifier", tests, valids, seconds, steps * bench.batch, speed, size)


def _figures(ranked: Mapping[str, Ranked]) -> tuple[dict[str, Result], dict[str, float]]:
    """Return the results on "test", and the overall figures on "valid"."""
    tests = {name: found.test for name, found in ranked.items()}
    return tests, {name: found.valid.overall for name, found in ranked.items()}


def _classifier(bench: Bench, data: Dataset, seed: int) -> tuple[baselines.MultiHeadClassifier, Loader]:
    torch.manual_seed(seed)
    trunk = rivals.make_trunk(bench.trunk, bench.trunk_weights, torch.default_generator)
    loader = Loader(
        data.split("train"),
        batch=bench.batch,
        preprocess=_inputs(bench, bench.size),
        augment=Augment(flip=bench.flip, crop_scale=bench.crop_scale),
        seed=seed,
    )
    return rivals.classifier_on(trunk, data), loader


def _train_classifier(
    classifier: baselines.MultiHeadClassifier,
    bench: Bench,
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
) -> None:
    baselines.train_classifier(
        classifier,
        batches,
        steps=steps,
        trunk_lr=bench.rate * bench.trunk_rate,
        head_lr=bench.rate,
        freeze_batch_norm=bench.batch_norm == "frozen",
        frozen=bench.frozen,
    )


def _inputs(bench: Bench, size: int) -> Preprocess:
    """Return how images become inputs: as for the methods."""
    mean, std = _C.trunk_normalization(bench.trunk)
    return Preprocess(size=size, fit="pad", box_margin=0.1, mean=mean, std=std)
