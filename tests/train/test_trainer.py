from __future__ import annotations

import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import BOTH, SIZE, STAGE, TRUNK
from torch import Tensor

import placket
from placket import _C, ops
from placket.config import RandomCropConfig, StageConfig, TrainerConfig
from placket.data import AsenDataset, DatasetError, Loader
from placket.data.store import StoreDataset
from placket.nn import Pictures, Rpf
from placket.train import Trainer

MakeModel = Callable[..., Rpf]
QUIET = TrainerConfig(report_every=3, checkpoint_every=0)


def equal(a: Rpf, b: Rpf) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def python_loop(model: Rpf, data: AsenDataset, stage: StageConfig, seed: int, steps: int) -> None:
    """The same training in plain Python."""
    loader = Loader(
        data.split("train"),
        sampler="triplets",
        batch=stage.batch,
        triplets=stage.triplets,
        preprocess=_C.Preprocess(**model.preprocess),
        augment=_C.Augment(flip=stage.flip),
        keep_pixels=True,
        seed=_C.stage_seed(seed, 0),
    )
    groups: dict[str, list[Tensor]] = {prefix: [] for prefix in stage.rates}
    for name, parameter in model.named_parameters():
        groups[max((prefix for prefix in groups if name.startswith(prefix)), key=len)].append(parameter)
    adam = torch.optim.Adam(
        [{"params": groups[prefix], "lr": rate} for prefix, rate in stage.rates.items()], fused=True
    )
    model.train()
    batches: Iterator[_C.Batch] = (batch for _ in range(stage.epochs) for batch in loader)
    for step, batch in zip(range(steps), batches, strict=False):
        torch.manual_seed(_C.step_seed(seed, step, 0))
        for group, rate in zip(adam.param_groups, stage.rates.values(), strict=True):
            group["lr"] = rate * stage.schedule.factor ** (step // len(loader) // stage.schedule.every)
        adam.zero_grad()
        out = model(
            batch.images,
            batch.attributes,
            Pictures(batch.pixels, batch.offsets, batch.sizes),
            background="region_patch" in stage.losses,
            groups=3,
        )
        losses = {"triplet_region": ops.cosine_triplet(*out.region.chunk(3), 0.2).mean()}
        if out.patch is not None:
            losses["triplet_patch"] = ops.cosine_triplet(*out.patch.chunk(3), 0.2).mean()
            losses["region_patch"] = ops.region_patch_info_nce(
                out.region, out.patch, out.background, batch.values, batch.attributes, 0.07, 12.0
            )
        total = sum(losses[name] * weight for name, weight in stage.losses.items())
        total.backward()
        adam.step()
    model.eval()


@pytest.mark.parametrize(
    ("stage", "patch", "options"),
    [
        (STAGE, None, {}),
        (STAGE, None, {"project_per_attribute": True}),
        (BOTH, TRUNK, {}),
        (BOTH, TRUNK, {"fit": "squash"}),
    ],
    ids=["region", "region_project_per_attribute", "both", "both_squashed"],
)
def test_equals_a_python_loop_in_every_bit(
    drawn: AsenDataset, make_model: MakeModel, stage: StageConfig, patch: str | None, options: dict[str, Any]
) -> None:
    native, python = (make_model(patch, **options) for _ in range(2))
    Trainer(native, drawn, stage, trainer=QUIET).run(6)
    python_loop(python, drawn, stage, QUIET.seed, 6)
    assert not equal(native, make_model(patch, **options))
    for (name, a), b in zip(native.state_dict().items(), python.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_parameters_share_storage(drawn: AsenDataset, make_model: MakeModel) -> None:
    model = make_model()
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    Trainer(model, drawn, STAGE, trainer=QUIET).step()
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == before[name][0]
    assert not torch.equal(model.region.trunk.conv1.weight, before["region.trunk.conv1.weight"][1])


def test_leaves_torch_random_numbers_alone(drawn: AsenDataset, make_model: MakeModel) -> None:
    trainer = Trainer(make_model(), drawn, STAGE, trainer=QUIET)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trainer.run(2)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("stage", "patch"), [(STAGE, None), (BOTH, TRUNK)], ids=["region", "both"])
def test_resumes_from_state(
    drawn: AsenDataset, make_model: MakeModel, stage: StageConfig, patch: str | None
) -> None:
    whole, first, second = make_model(patch), make_model(patch), make_model(patch, seed=9)
    Trainer(whole, drawn, stage, trainer=QUIET).run()
    stopped = Trainer(first, drawn, stage, trainer=QUIET)
    stopped.run(3)
    state = stopped.state()
    stopped.run(2)  # the state is a copy
    resumed = Trainer(second, drawn, stage, trainer=dataclasses.replace(QUIET, loader_threads=1))
    resumed.load_state(state)
    assert resumed.steps_done == 3
    resumed.run()
    assert resumed.done
    assert equal(whole, second)


@pytest.fixture(scope="module")
def packed(drawn: AsenDataset, tmp_path_factory: pytest.TempPathFactory) -> StoreDataset:
    return placket.data.pack(drawn, tmp_path_factory.mktemp("packed") / "drawn.store", size=SIZE)


@pytest.mark.parametrize(("stage", "patch"), [(STAGE, None), (BOTH, TRUNK)], ids=["region", "both"])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_resident_pixels_change_no_bit(
    packed: StoreDataset, make_model: MakeModel, stage: StageConfig, patch: str | None, fit: str
) -> None:
    stage = dataclasses.replace(stage, crop_scale=0.5, random_crop=RandomCropConfig(4))
    mapped, kept, resumed = (make_model(patch, fit=fit) for _ in range(3))
    one = Trainer(mapped, packed, stage, trainer=QUIET, evaluation="valid")
    other = Trainer(kept, packed, stage, trainer=QUIET, evaluation="valid", resident=True)
    one.run(6)
    other.run(4)
    third = Trainer(resumed, packed, stage, trainer=QUIET, evaluation="valid", resident=True)
    third.load_state(other.state())
    for trainer, model in ((other, kept), (third, resumed)):
        trainer.run(6 - trainer.steps_done)
        assert equal(model, mapped)
        assert trainer.evaluate().per_attribute == one.evaluate().per_attribute


@pytest.mark.gpu
@pytest.mark.parametrize("bfloat16", [False, True])
def test_resident_pixels_train_alike_on_cuda(
    packed: StoreDataset, make_model: MakeModel, bfloat16: bool
) -> None:
    settings = dataclasses.replace(QUIET, bfloat16=bfloat16)
    models = [make_model(TRUNK, dropout=0.0).cuda() for _ in range(2)]
    mapped, kept = (
        Trainer(model, packed, BOTH, trainer=settings, resident=resident)
        for model, resident in zip(models, (False, True), strict=True)
    )
    # Of equal inputs and weights the first losses differ by the order of the device's sums at most.
    assert kept.step() == pytest.approx(mapped.step(), rel=1e-2 if bfloat16 else 1e-4)
    kept.run(3)


def test_resident_training_needs_a_store_of_pixels(drawn: AsenDataset, make_model: MakeModel) -> None:
    with pytest.raises(DatasetError, match=r"'train' must be of a store of pixels .* got loose files"):
        Trainer(make_model(), drawn, STAGE, trainer=QUIET, resident=True)


def test_a_state_of_another_stage_is_refused(drawn: AsenDataset, make_model: MakeModel) -> None:
    state = Trainer(make_model(), drawn, STAGE, trainer=QUIET).state()
    other = make_model(TRUNK)
    trainer = Trainer(other, drawn, BOTH, trainer=QUIET)
    with pytest.raises(ValueError, match="Trainer: state's stage must be patch, got region"):
        trainer.load_state(state)
    renamed = Trainer(other, drawn, dataclasses.replace(BOTH, name="region"), trainer=QUIET)
    with pytest.raises(ValueError, match="Trainer: state has no tensor 'patch"):
        renamed.load_state(state)
    assert equal(other, make_model(TRUNK))


def test_keyboard_interrupt(drawn: AsenDataset, make_model: MakeModel) -> None:
    stage = dataclasses.replace(STAGE, epochs=500)
    model = make_model()
    trainer = Trainer(model, drawn, stage, trainer=QUIET)
    trainer.run(1)
    sent = []

    def interrupt() -> None:
        sent.append(time.process_time())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.3, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert time.process_time() - sent[0] < 1  # of all threads, which a busy machine does not stretch
    timer.join()
    done = trainer.steps_done
    trainer.run(2)
    assert trainer.steps_done == done + 2
    other = make_model()
    Trainer(other, drawn, stage, trainer=QUIET).run(done + 2)
    assert equal(model, other)


def test_keyboard_interrupt_within_a_step(drawn: AsenDataset, make_model: MakeModel) -> None:
    # A step of seconds in many layers.
    stage = dataclasses.replace(STAGE, batch=32, triplets=64)
    model = make_model(trunk="resnet50,width=0.5", size=128)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = Trainer(model, drawn, stage, trainer=QUIET)
    sent = []

    def interrupt() -> None:
        sent.append(time.process_time())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(1.0, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert time.process_time() - sent[0] < 1  # of all threads, which a busy machine does not stretch
    timer.join()
    assert trainer.steps_done == 0, "the step was too short to be interrupted"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_exception_of_a_report_keeps_its_type(drawn: AsenDataset, make_model: MakeModel) -> None:
    class Full(Exception):
        pass

    reports: list[_C.Report] = []

    def report(given: _C.Report) -> None:
        reports.append(given)
        if len(reports) == 1:
            raise Full("enough")

    model, other = make_model(), make_model()
    trainer = Trainer(model, drawn, STAGE, trainer=QUIET, on_report=report)
    with pytest.raises(Full, match="enough"):
        trainer.run()
    assert trainer.steps_done == 3
    trainer.run()
    Trainer(other, drawn, STAGE, trainer=QUIET).run()
    assert equal(model, other)
    assert [r.step for r in reports] == [3, 6, 8]
    assert [r.rates for r in reports] == [{"all": 1e-3}, {"all": 5e-4}, {"all": 5e-4}]
    assert [r.epoch for r in reports] == [0, 1, 1]


def test_report_is_the_mean_of_the_steps(drawn: AsenDataset, make_model: MakeModel) -> None:
    reports: list[_C.Report] = []
    Trainer(make_model(TRUNK), drawn, BOTH, trainer=QUIET, on_report=reports.append).run(3)
    stepped = Trainer(make_model(TRUNK), drawn, BOTH, trainer=QUIET)
    losses = [stepped.step() for _ in range(3)]
    for name, value in reports[0].losses.items():
        assert value == pytest.approx(sum(step[name] for step in losses) / 3, rel=1e-6)
    total = sum(weight * reports[0].losses[name] for name, weight in BOTH.losses.items())
    assert reports[0].loss == pytest.approx(total, rel=1e-5)
    assert reports[0].images_per_second > 0
    assert 0 <= reports[0].data_wait <= 1


def test_other_threads_run_during_a_step(drawn: AsenDataset, make_model: MakeModel) -> None:
    ticks = 0
    stop = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not stop.wait(0.001):
            ticks += 1

    trainer = Trainer(make_model(), drawn, dataclasses.replace(STAGE, epochs=500), trainer=QUIET)
    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    trainer.run(10)
    seconds = time.perf_counter() - start
    stop.set()
    thread.join()
    # A held lock would give none at all; the machine may be busy.
    assert ticks > 20 * seconds


def test_a_loss_that_is_not_finite_stops(drawn: AsenDataset, make_model: MakeModel) -> None:
    model = make_model(TRUNK)
    trainer = Trainer(model, drawn, BOTH, trainer=QUIET)
    trainer.run(2)
    with torch.no_grad():
        model.patch.head.tensors()[-1].fill_(math.nan)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(RuntimeError, match="Trainer: loss triplet_patch must be finite, got nan") as raised:
        trainer.run()
    assert "at step 3 of the run" in str(raised.value)
    assert str(drawn.root / "img" / "train") in str(raised.value)
    assert trainer.steps_done == 2
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) or parameter.isnan().any(), name


def test_overfits(drawn: AsenDataset, make_model: MakeModel) -> None:
    stage = dataclasses.replace(STAGE, epochs=15, batch=8, triplets=64, rates={"": 3e-3}, flip=0.0)
    reports: list[_C.Report] = []
    settings = dataclasses.replace(QUIET, report_every=20)
    trainer = Trainer(
        make_model(dropout=0.0), drawn, stage, trainer=settings, evaluation="valid", on_report=reports.append
    )
    trainer.run()
    assert reports[0].loss > 0.05
    assert reports[-1].loss < 0.02
    assert trainer.best is not None
    assert trainer.best > 90


def test_evaluation_equals_the_protocol(drawn: AsenDataset, make_model: MakeModel) -> None:
    for patch, stage in ((None, STAGE), (TRUNK, BOTH)):
        model = make_model(patch)
        found = Trainer(model, drawn, stage, trainer=QUIET, evaluation="valid").evaluate()
        result = placket.evaluate(model, drawn, "valid")
        assert 100 * found.overall == pytest.approx(result.overall, abs=1e-9)
        per_attribute = dict(zip(drawn.schema.names, found.per_attribute, strict=True))
        for name, value in result.per_attribute.items():
            assert 100 * per_attribute[name] == pytest.approx(value, abs=1e-9)


def test_learns_from_inputs_of_the_stage_s_size(drawn: AsenDataset, make_model: MakeModel) -> None:
    half, models = SIZE // 2, [make_model(TRUNK) for _ in range(2)]
    models[1].preprocess["size"] = half
    trainers = [
        Trainer(model, drawn, dataclasses.replace(BOTH, size=size), trainer=QUIET, evaluation="valid")
        for model, size in zip(models, (half, None), strict=True)
    ]
    for trainer in trainers:
        trainer.run(3)
    assert equal(*models)
    large, small = (placket.evaluate(model, drawn, "valid").overall for model in models)
    assert large != small
    assert 100 * trainers[0].evaluate().overall == pytest.approx(large, abs=1e-9)


def test_embeddings_equal_the_module(drawn: AsenDataset, make_model: MakeModel) -> None:
    model = make_model(TRUNK).eval()
    split = drawn.split("valid")
    embeddings = placket.embed_split(model, split, batch=7)
    image = placket.embed_image(model, split.paths[4], ["place", "colour"])
    # Convolutions of other batch sizes may add in another order.
    torch.testing.assert_close(image, embeddings[4].flip(0), rtol=1e-5, atol=1e-6)


def test_classes_sampler(drawn: AsenDataset, make_model: MakeModel) -> None:
    stage = dataclasses.replace(
        STAGE,
        sampler="classes",
        batch_norm="merged",
        batch=6,
        images_of_class=3,
        losses={"region_contrast": 1.0},
        epochs=12,
    )
    reports: list[_C.Report] = []
    trainer = Trainer(make_model(TRUNK), drawn, stage, trainer=QUIET, on_report=reports.append)
    trainer.run()
    assert trainer.steps == 12 * (len(drawn.split("train")) // 6)
    assert reports[-1].loss < reports[0].loss


@pytest.mark.parametrize("own", [False, True], ids=["shared", "project_per_attribute"])
def test_images_sampler_and_other_losses(drawn: AsenDataset, make_model: MakeModel, own: bool) -> None:
    stage = dataclasses.replace(
        BOTH,
        sampler="images",
        batch_norm="merged",
        batch=8,
        views_per_image=2,
        losses={"region_contrast": 1.0, "region_classify": 0.5, "patch_contrast": 1.0, "patch_classify": 0.5},
        weight_decay=0.01,
        decoupled_decay=True,
        epochs=12,
        rates={"": 1e-3, "region.centres": 1e-2, "patch.centres": 1e-2},
    )
    reports: list[_C.Report] = []
    model = make_model(TRUNK, project_per_attribute=own)
    trainer = Trainer(model, drawn, stage, trainer=QUIET, on_report=reports.append)
    trainer.run(4)
    state = trainer.state()
    trainer.run()
    centres = {"region.centres", "patch.centres"}
    assert centres <= set(state.model)
    assert not centres & set(state.trainer)
    assert reports[-1].loss < 0.7 * reports[0].loss
    resumed = make_model(TRUNK, seed=3, project_per_attribute=own)
    other = Trainer(resumed, drawn, stage, trainer=QUIET)
    other.load_state(state)
    other.run()
    assert equal(model, resumed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"losses": {"triplet_regio": 1.0}},
            "stage: loss must be one of triplet_region, .*got 'triplet_regio'",
        ),
        ({"losses": {"triplet_patch": 1.0}}, "stage: loss 'triplet_patch' needs branch 'patch'"),
        ({"branches": ("patch",)}, "stage: branch 'patch' is not part of this model"),
        ({"rates": {"region.": 1e-3}}, "stage: no rate fits the parameter 'attribute_embedding.weight'"),
        ({"rates": {"": 1e-3, "regoin.": 1e-4}}, "stage: no parameter begins with 'regoin.'"),
        ({"batch": 100}, "triplet sampler: triplets must be at least one batch of 100, got 16"),
        ({"epochs": 0}, "Trainer: epochs must be at least 1, got 0"),
        ({"size": 0}, r"size must be in \[1, 8192\], got 0"),
        ({"sampler": "images"}, "stage: batch_norm must be merged or frozen with sampler images"),
        (
            {"sampler": "classes", "batch": 10, "batch_norm": "merged", "losses": {"region_contrast": 1.0}},
            "stage: batch must be a multiple of images_of_class 4, got 10",
        ),
    ],
)
def test_settings_that_do_not_fit(
    drawn: AsenDataset, make_model: MakeModel, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(make_model(), drawn, dataclasses.replace(STAGE, **change), trainer=QUIET)


def test_frozen_batch_norm_and_rates_of_zero_keep_tensors(drawn: AsenDataset, make_model: MakeModel) -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stage = dataclasses.replace(STAGE, batch_norm="frozen", rates={"": 1e-3, "region.trunk.": 0.0})
    Trainer(model, drawn, stage, trainer=QUIET).run(2)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("region.trunk."), name


def test_a_missing_image_is_named(drawn: AsenDataset, make_model: MakeModel, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(drawn.root, tmp_path / drawn.root.name)
    data = placket.data.open(tmp_path / drawn.root.name)
    gone = Path(data.split("train").paths[0])
    gone.unlink()
    trainer = Trainer(make_model(), data, STAGE, trainer=QUIET)
    with pytest.raises(RuntimeError, match=str(gone)):
        trainer.run()
