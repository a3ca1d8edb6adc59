from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small_training import BOTH, STAGE, TRUNK
from torch import Tensor

from placket import _C, losses, ops
from placket.config import StageConfig, TrainerConfig
from placket.data import AsenDataset, Loader
from placket.nn import Rpf
from placket.train import ExtraLoss, Trainer

MakeModel = Callable[..., Rpf]
QUIET = TrainerConfig(report_every=3, checkpoint_every=0)
OFFSETS = torch.tensor([0, 3])  # three colours, two places


def with_extra(stage: StageConfig = STAGE, **weights: float) -> StageConfig:
    return dataclasses.replace(stage, losses={**stage.losses, **(weights or {"extra": 0.5})})


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(2, -1, keepdim=True).clamp_min(1e-12)


def python_loop(model: Rpf, data: AsenDataset, stage: StageConfig, extra: ExtraLoss, steps: int) -> None:
    """The same training in plain Python."""
    loader = Loader(
        data.split("train"),
        sampler="triplets",
        batch=stage.batch,
        triplets=stage.triplets,
        preprocess=_C.Preprocess(**model.preprocess),
        augment=_C.Augment(flip=stage.flip),
        seed=_C.stage_seed(QUIET.seed, 0),
    )
    adam = torch.optim.Adam(model.parameters(), lr=stage.rates[""], fused=True)
    model.train()
    batches: Iterator[_C.Batch] = iter(loader)
    for step, batch in zip(range(steps), batches, strict=False):
        torch.manual_seed(_C.step_seed(QUIET.seed, step, 0))
        adam.zero_grad()
        rows = len(batch.images)
        # As C++ does, with one list of attributes for all images.
        out = model._embed(batch.images, torch.arange(2), None, True, False, 3)
        region = out.region.flatten(0, 1)
        own = region.index_select(0, torch.arange(rows) * 2 + batch.attributes)
        labels = torch.where(batch.labels >= 0, OFFSETS + batch.labels, -1).flatten()
        known = (labels >= 0).nonzero().squeeze(1)
        value = extra(unit(region).index_select(0, known), labels.index_select(0, known))
        total = ops.cosine_triplet(*own.chunk(3), 0.2).mean() * 1.0 + value * stage.losses["extra"]
        total.backward()
        adam.step()
    model.eval()


def metric_learning_loss(name: str) -> ExtraLoss:
    peers = pytest.importorskip("pytorch_metric_learning.losses")
    loss: ExtraLoss = getattr(peers, name)()
    return loss


@pytest.mark.parametrize("name", ["MultiSimilarityLoss", "TripletMarginLoss"])
def test_equals_a_python_loop_in_every_bit(drawn: AsenDataset, make_model: MakeModel, name: str) -> None:
    extra, stage = metric_learning_loss(name), with_extra()
    native, python = make_model(), make_model()
    trainer = Trainer(native, drawn, stage, trainer=QUIET, extra_losses={"extra": extra})
    found = [trainer.step() for _ in range(3)]
    assert all(step["extra"] > 0 for step in found)
    python_loop(python, drawn, stage, extra, 3)
    for (key, a), b in zip(native.state_dict().items(), python.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


def test_a_loss_of_ours_alone(drawn: AsenDataset, make_model: MakeModel) -> None:
    stage = dataclasses.replace(
        STAGE, sampler="images", batch=8, batch_norm="merged", epochs=15, losses={"hard": 1.0}, flip=0.0
    )
    reports: list[_C.Report] = []
    trainer = Trainer(
        make_model(dropout=0.0),
        drawn,
        dataclasses.replace(stage, rates={"": 3e-3}),
        trainer=dataclasses.replace(QUIET, report_every=15),
        extra_losses={"hard": losses.BatchHardTripletLoss(0.2)},
        on_report=reports.append,
    )
    trainer.run()
    assert reports[-1].losses["hard"] < 0.7 * reports[0].losses["hard"]


@pytest.mark.parametrize("bfloat16", [False, True])
def test_what_a_loss_is_given(drawn: AsenDataset, make_model: MakeModel, bfloat16: bool) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def extra(embeddings: Tensor, labels: Tensor) -> Tensor:
        assert not torch.is_autocast_enabled("cpu")
        seen.append((embeddings.detach(), labels))
        return embeddings.sum()

    settings = dataclasses.replace(QUIET, bfloat16=bfloat16)
    rows = 3 * STAGE.batch
    for stage, patch, views, width in ((STAGE, None, 2 * rows, 1), (BOTH, TRUNK, rows, 2)):
        model = make_model(patch)
        Trainer(model, drawn, with_extra(stage), trainer=settings, extra_losses={"extra": extra}).step()
        embeddings, labels = seen.pop()
        assert embeddings.dtype == torch.float32
        assert embeddings.shape == (views, width * model.config.embedding_dim)
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(views))
        assert labels.dtype == torch.int64
        assert set(labels.tolist()) <= set(range(5))
        assert (labels >= 3).any()


def test_an_exception_keeps_its_type_and_undoes_the_step(drawn: AsenDataset, make_model: MakeModel) -> None:
    class Enough(Exception):
        pass

    calls = 0

    def extra(embeddings: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Enough("for now")
        return embeddings.square().sum() * 0.1

    model, other = make_model(), make_model()
    trainer = Trainer(model, drawn, with_extra(), trainer=QUIET, extra_losses={"extra": extra})
    trainer.step()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(Enough, match="for now"):
        trainer.run()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    trainer.run(2)
    Trainer(other, drawn, with_extra(), trainer=QUIET, extra_losses={"extra": extra}).run(3)
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_other_threads_run_during_a_step(drawn: AsenDataset, make_model: MakeModel) -> None:
    ticks, stop = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not stop.wait(0.001):
            ticks += 1

    stage = with_extra(dataclasses.replace(STAGE, epochs=500))
    extra = losses.MultiPositiveInfoNCE()
    trainer = Trainer(make_model(), drawn, stage, trainer=QUIET, extra_losses={"extra": extra})
    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    trainer.run(10)
    seconds = time.perf_counter() - start
    stop.set()
    thread.join()
    # A lock held through forward and backward would give none at all; the machine may be busy.
    assert ticks > 20 * seconds


def test_state_goes_on_with_extra_losses(drawn: AsenDataset, make_model: MakeModel) -> None:
    extra = {"extra": losses.MultiPositiveInfoNCE()}
    whole, first, second = make_model(), make_model(), make_model(seed=9)
    Trainer(whole, drawn, with_extra(), trainer=QUIET, extra_losses=extra).run(5)
    stopped = Trainer(first, drawn, with_extra(), trainer=QUIET, extra_losses=extra)
    stopped.run(2)
    resumed = Trainer(second, drawn, with_extra(), trainer=QUIET, extra_losses=extra)
    resumed.load_state(stopped.state())
    resumed.run(3)
    for (name, a), b in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("extra", "weights", "error", "message"),
    [
        (
            {"triplet_region": losses.MultiPositiveInfoNCE()},
            {},
            ValueError,
            "must have names of their own, got 'tri",
        ),
        ({"mine": losses.MultiPositiveInfoNCE()}, {}, ValueError, "losses must give a weight for 'mine'"),
        (
            {"mine": losses.MultiPositiveInfoNCE()},
            {"mine": 0.0},
            ValueError,
            "loss 'mine' must be positive, got 0",
        ),
        ({}, {"mine": 1.0}, ValueError, "loss must be one of triplet_region, .*, got 'mine'"),
        (
            {"mine": losses.MultiPositiveInfoNCE()},
            {"mine": 1.0, "other": 1.0},
            ValueError,
            "loss must be one of .*, mine, got 'other'",
        ),
        (
            {"mine": losses.PrototypeCrossEntropy(5, 8)},
            {"mine": 1.0},
            ValueError,
            "extra_losses must have no parameters, got 'mine' with 'centres'",
        ),
    ],
)
def test_losses_that_do_not_fit(
    drawn: AsenDataset,
    make_model: MakeModel,
    extra: dict[str, ExtraLoss],
    weights: dict[str, float],
    error: type[Exception],
    message: str,
) -> None:
    stage = dataclasses.replace(STAGE, losses={**STAGE.losses, **weights})
    with pytest.raises(error, match=message):
        Trainer(make_model(), drawn, stage, trainer=QUIET, extra_losses=extra)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (0.5, TypeError, "stage: loss 'extra' must return a tensor, got float"),
        (torch.ones(2), ValueError, r"loss 'extra' must return one floating-point number, got Float \[2\]"),
        (torch.tensor(1), ValueError, "loss 'extra' must return one floating-point number, got Long"),
        (torch.tensor(float("nan")), RuntimeError, "loss extra must be finite, got nan"),
    ],
)
def test_results_that_do_not_fit(
    drawn: AsenDataset, make_model: MakeModel, result: Any, error: type[Exception], message: str
) -> None:
    trainer = Trainer(
        make_model(), drawn, with_extra(), trainer=QUIET, extra_losses={"extra": lambda *_: result}
    )
    with pytest.raises(error, match=message):
        trainer.step()
