"""MODC through the trainer: its stages, its centres, what it does where labels are missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import SIZE, STAGE, TRUNK, draw_all, small_config

import placket
from placket import _C, ops
from placket.config import (
    ColorJitterConfig,
    LossConfig,
    ScheduleConfig,
    StageConfig,
    TrainerConfig,
    load_config,
)
from placket.data import AsenDataset, Loader
from placket.nn import Modc, Rpf
from placket.train import Trainer

QUIET = TrainerConfig(report_every=3, checkpoint_every=0)
CLUSTER = dataclasses.replace(
    STAGE,
    name="cluster",
    losses={"triplet_region": 1.0, "region_prototype": 1.0, "region_centre_triplet": 0.5},
)
PSEUDO = dataclasses.replace(
    CLUSTER,
    name="pseudo_label",
    losses={**CLUSTER.losses, "region_pseudo_label": 1.0, "region_consistency": 1.0},
    ramp_epochs={"region_pseudo_label": 1.0, "region_consistency": 1.5},
    copies=2,
    crop_scale=0.6,
    color_jitter=ColorJitterConfig(brightness=0.3),
)
LOSS = LossConfig(pseudo_confidence=0.3)  # 0.8 is rare in the first steps
OWNERS = torch.tensor([0, 0, 0, 1, 1])
HEADS = ["asen_plus_plus", "asen_v2", "rpf_region"]


def make(data: AsenDataset, seed: int = 0, head: str = "rpf_region") -> Modc:
    model = placket.create_model(
        "modc",
        schema=data.schema,
        trunk=TRUNK,
        head=head,
        attribute_dim=16,
        preprocess={"size": SIZE},
        generator=torch.Generator().manual_seed(seed),
    )
    assert isinstance(model, Modc)
    return model


@pytest.fixture
def relabelled(tmp_path: Path) -> Callable[[Callable[[int, int, int], str]], AsenDataset]:
    """The drawn images with other training labels: a line of (image, colour, place)."""

    def write(label: Callable[[int, int, int], str]) -> AsenDataset:
        draw_all(tmp_path)
        lines = [[int(word) for word in line.split()] for line in (tmp_path / "label_train.txt").open()]
        kept = [f"{i} {label(i, colour, place)}\n" for i, _, colour, _, place in lines]
        (tmp_path / "label_train.txt").write_text("".join(kept))
        return placket.data.open(tmp_path)

    return write


def equal(a: Modc, b: Modc) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def weight_at(stage: StageConfig, loss: str, step: int, steps_per_epoch: int) -> float:
    ramp = stage.ramp_epochs.get(loss)
    return stage.losses[loss] * (1 if ramp is None else min(1.0, step / (ramp * steps_per_epoch)))


def python_loop(model: Modc, data: AsenDataset, stage: StageConfig, steps: int) -> None:
    """The same training in plain Python."""
    loader = Loader(
        data.split("train"),
        sampler="triplets",
        batch=stage.batch,
        triplets=stage.triplets,
        copies=stage.copies,
        preprocess=_C.Preprocess(**model.preprocess),
        augment=_C.Augment(
            flip=stage.flip,
            crop_scale=stage.crop_scale,
            color_jitter=_C.ColorJitter(**dataclasses.asdict(stage.color_jitter)),
        ),
        seed=_C.stage_seed(QUIET.seed, 0),
    )
    adam = torch.optim.Adam(model.parameters(), lr=stage.rates[""], fused=True)
    model.train()
    offsets = torch.tensor([0, 3])
    batches: Iterator[_C.Batch] = (batch for _ in range(stage.epochs) for batch in loader)
    for step, batch in zip(range(steps), batches, strict=False):
        torch.manual_seed(_C.step_seed(QUIET.seed, step, 0))
        for group in adam.param_groups:
            group["lr"] = stage.rates[""] * stage.schedule.factor ** (step // len(loader))
        adam.zero_grad()
        region = model._embed(batch.images, torch.arange(2), None, False, False, 3).region
        z, attributes = region.flatten(0, 1), torch.arange(2).repeat(len(region))
        own = z[2 * torch.arange(len(region)) + batch.attributes]
        classes = torch.where(batch.labels >= 0, batch.labels + offsets, -1).flatten()
        known = model.class_centres.clone(), OWNERS
        losses = {
            "triplet_region": ops.cosine_triplet(*own.chunk(3), 0.2).mean(),
            "region_prototype": ops.prototype_cross_entropy(z, *known, attributes, classes, 0.1),
            "region_centre_triplet": ops.centre_triplet(z, *known, attributes, classes, 0.2),
        }
        if stage.copies == 2:
            losses["region_pseudo_label"] = ops.pseudo_label_cross_entropy(
                z, *known, attributes, classes, 0.1, LOSS.pseudo_confidence
            )
            one, other = z.view(-1, 2, 2, z.shape[1]).unbind(1)
            losses["region_consistency"] = ops.assignment_consistency(
                one.flatten(0, 1), other.flatten(0, 1), *known, attributes[: len(z) // 2], 0.1
            )
        total = sum(losses[name] * weight_at(stage, name, step, len(loader)) for name in stage.losses)
        total.backward()
        model.class_centres.copy_(ops.class_centres(model.class_centres, z, classes, 0.9))
        adam.step()
    model.eval()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("stage", [CLUSTER, PSEUDO], ids=["cluster", "pseudo_label"])
def test_equals_a_python_loop_in_every_bit(drawn: AsenDataset, stage: StageConfig, head: str) -> None:
    native, python = make(drawn, head=head), make(drawn, head=head)
    Trainer(native, drawn, stage, loss=LOSS, trainer=QUIET).run(6)
    python_loop(python, drawn, stage, 6)
    for (name, a), b in zip(native.state_dict().items(), python.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    torch.testing.assert_close(native.class_centres.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("stage", [CLUSTER, PSEUDO], ids=["cluster", "pseudo_label"])
def test_resumes_from_state(drawn: AsenDataset, stage: StageConfig) -> None:
    whole, first, second = make(drawn), make(drawn), make(drawn, seed=9)
    Trainer(whole, drawn, stage, loss=LOSS, trainer=QUIET).run()
    stopped = Trainer(first, drawn, stage, loss=LOSS, trainer=QUIET)
    stopped.run(3)
    state = stopped.state()
    stopped.run(2)  # the state is a copy
    settings = dataclasses.replace(QUIET, loader_threads=1)
    resumed = Trainer(second, drawn, stage, loss=LOSS, trainer=settings)
    resumed.load_state(state)
    resumed.run()
    assert equal(whole, second)


def test_the_default_head_is_asen_plus_plus(drawn: AsenDataset) -> None:
    model = placket.create_model("modc", schema=drawn.schema, trunk=TRUNK, attribute_dim=16)
    assert model.state_dict().keys() == make(drawn, head="asen_plus_plus").state_dict().keys()
    assert model.state_dict().keys() != make(drawn, head="asen_v2").state_dict().keys()


def test_a_step_that_fails_leaves_the_centres(drawn: AsenDataset) -> None:
    model = make(drawn)
    trainer = Trainer(model, drawn, CLUSTER, trainer=QUIET)
    trainer.run(2)
    before = model.class_centres.clone()
    bias = next(p for name, p in model.named_parameters() if name.endswith("pooled_proj.bias"))
    kept = bias.detach().clone()
    bias.data.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="loss triplet_region must be finite"):
        trainer.run(1)
    assert torch.equal(model.class_centres, before)
    bias.data.copy_(kept)
    trainer.run()
    uninterrupted = make(drawn)
    Trainer(uninterrupted, drawn, CLUSTER, trainer=QUIET).run()
    assert equal(model, uninterrupted)


def test_the_instance_stage_has_no_centres(drawn: AsenDataset) -> None:
    model = make(drawn)
    Trainer(model, drawn, STAGE, trainer=QUIET).run(2)
    assert not model.class_centres.any()


@pytest.mark.parametrize("head", HEADS)
def test_images_in_place_of_triplets(drawn: AsenDataset, head: str) -> None:
    losses = {"region_prototype": 1.0, "region_consistency": 1.0}
    stage = dataclasses.replace(PSEUDO, sampler="images", batch=6, batch_norm="merged", losses=losses)
    stage = dataclasses.replace(stage, ramp_epochs={}, epochs=30, schedule=ScheduleConfig(factor=1.0))
    model = make(drawn, head=head)
    trainer = Trainer(model, drawn, stage, trainer=QUIET)
    trainer.step()  # every class is seen
    first = np.mean([trainer.step()["region_prototype"] for _ in range(4)])
    trainer.run(100)
    last = np.mean([trainer.step()["region_prototype"] for _ in range(4)])
    assert last < first / 2
    model.eval()
    batch = next(iter(Loader(drawn.split("valid"), batch=18, preprocess=_C.Preprocess(**model.preprocess))))
    colour, place = model.class_probabilities(batch.images, ["colour", "place"])
    assert colour.shape == (18, 3)
    assert place.shape == (18, 2)
    assert (colour.argmax(1) == batch.labels[:, 0]).float().mean() > 0.8


def test_a_class_never_seen_has_no_part(
    relabelled: Callable[[Callable[[int, int, int], str]], AsenDataset],
) -> None:
    """No image is blue (2), and each has a label of one attribute only."""
    data = relabelled(lambda i, c, p: f"0 {c}" if i % 2 and c != 2 else f"1 {p}")
    model = make(data)
    reported: list[_C.Report] = []
    settings = dataclasses.replace(QUIET, report_every=1)
    Trainer(model, data, PSEUDO, loss=LOSS, trainer=settings, on_report=reported.append).run()
    assert torch.equal(model.class_centres[2], torch.zeros(model.embedding_dim))
    torch.testing.assert_close(model.class_centres[[0, 1, 3, 4]].norm(dim=1), torch.ones(4))
    assert any(report.losses["region_pseudo_label"] > 0 for report in reported)
    (p,) = model.eval().class_probabilities(torch.randn(3, 3, SIZE, SIZE), ["colour"])
    assert torch.equal(p[:, 2], torch.zeros(3))
    torch.testing.assert_close(p.sum(1), torch.ones(3))


def test_a_value_that_loses_its_last_image_keeps_its_centre(
    drawn: AsenDataset, relabelled: Callable[[Callable[[int, int, int], str]], AsenDataset]
) -> None:
    model = make(drawn)
    Trainer(model, drawn, CLUSTER, trainer=QUIET).run()
    before = model.class_centres.clone()
    without_blue = relabelled(lambda i, c, p: f"0 {c} 1 {p}" if c != 2 else f"1 {p}")
    Trainer(model, without_blue, CLUSTER, trainer=QUIET).run()
    changed = (model.class_centres != before).any(dim=1)
    assert changed.tolist() == [True, True, False, True, True]
    assert model.class_centres[2].any()


def test_an_attribute_without_labels(
    relabelled: Callable[[Callable[[int, int, int], str]], AsenDataset],
) -> None:
    data = relabelled(lambda i, c, p: f"0 {c}")
    model = make(data)
    Trainer(model, data, PSEUDO, loss=LOSS, trainer=QUIET).run()
    assert not model.class_centres[3:].any()
    assert model.class_centres[:3].any(dim=1).all()
    (p,) = model.eval().class_probabilities(torch.randn(2, 3, SIZE, SIZE), ["place"])
    assert torch.equal(p, torch.zeros(2, 2))


def test_weights_rise_over_their_ramp(drawn: AsenDataset) -> None:
    reported: list[_C.Report] = []
    settings = dataclasses.replace(QUIET, report_every=1)
    trainer = Trainer(make(drawn), drawn, PSEUDO, loss=LOSS, trainer=settings, on_report=reported.append)
    trainer.run()
    steps = trainer.steps // PSEUDO.epochs
    for step, report in enumerate(reported):
        weighted = [value * weight_at(PSEUDO, name, step, steps) for name, value in report.losses.items()]
        assert report.loss == pytest.approx(sum(weighted), rel=1e-5)
    shares = [weight_at(PSEUDO, "region_consistency", step, steps) for step in range(len(reported))]
    assert shares == [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1]


def test_all_stages(drawn: AsenDataset, tmp_path: Path) -> None:
    config = small_config(drawn.root)
    options = {"name": "modc", "patch": None, "head": "rpf_region", "patch_size": None}
    stages = tuple(dataclasses.replace(stage, epochs=1) for stage in (STAGE, CLUSTER, PSEUDO))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **options), stages=stages)
    result = placket.train(config, run=tmp_path / "run", progress=False)
    models = [result.model(stage.name) for stage in stages]
    assert not models[0].class_centres.any()
    assert models[1].class_centres.any()
    assert not equal(models[1], models[2])
    assert isinstance(result.model(), Modc)


def test_the_recipe_is_the_reconstruction() -> None:
    config = load_config("modc")
    assert [stage.name for stage in config.stages] == ["instance", "cluster", "pseudo_label"]
    assert [stage.epochs for stage in config.stages] == [50, 20, 20]
    assert [stage.rates for stage in config.stages] == [{"": 1e-4}, {"": 5e-5}, {"": 2e-5}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"copies": 1}, "stage: loss 'region_consistency' needs copies 2, got 1"),
        ({"copies": 0}, "stage: loss 'region_consistency' needs copies 2, got 0"),
        (
            {"copies": 0, "losses": {"triplet_region": 1.0}, "ramp_epochs": {}},
            "copies must be at least 1, got 0",
        ),
        (
            {"ramp_epochs": {"region_patch": 1.0}},
            "stage: ramp_epochs must be one of triplet_region, .* got 'region_patch'",
        ),
        (
            {"ramp_epochs": {"triplet_region": 0.0}},
            "stage: ramp_epochs of 'triplet_region' must be positive, got 0",
        ),
    ],
)
def test_settings_that_do_not_fit(drawn: AsenDataset, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(make(drawn), drawn, dataclasses.replace(PSEUDO, **change), trainer=QUIET)


def test_other_networks_keep_no_centres(drawn: AsenDataset, make_model: Callable[..., Rpf]) -> None:
    with pytest.raises(
        ValueError, match="loss 'region_prototype' needs a network that keeps class centres, got one without"
    ):
        Trainer(make_model(), drawn, CLUSTER, trainer=QUIET)
