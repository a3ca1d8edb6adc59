"""Training of ASEN, ASEN v2, ASEN++, CSN and the triplet network."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_training import STAGE, TRUNK, small_config
from torch import Tensor

import placket
from placket import _C, ops, reference
from placket.config import ModelConfig, StageConfig, TrainerConfig, load_config
from placket.data import AsenDataset, Loader
from placket.nn import AttributeNetwork, Pictures
from placket.train import Trainer

QUIET = TrainerConfig(report_every=100, checkpoint_every=0)
BOTH = dataclasses.replace(
    STAGE,
    name="patch",
    branches=("region", "patch"),
    losses={"triplet_region": 1.0, "triplet_patch": 0.1, "region_patch_align": 0.3},
    rates={"": 1e-4, "patch.": 1e-3},
    flip=0.0,
)
OPTIONS: dict[str, dict[str, object]] = {
    "asen": {"attribute_dim": 16},
    "asen_v2": {"attribute_dim": 16},
    "asen_plus_plus": {"attribute_dim": 16, "embedding_dim": 24, "patch_size": 32, "patch": None},
    "csn": {"embedding_dim": 24},
    "triplet": {"embedding_dim": 24},
}
# Of ASEN v2, a bias before a BatchNorm: with statistics of the batch its gradient is nothing but rounding.
BEFORE_NORM = "region.head.image_proj.bias"


def make(data: AsenDataset, method: str, seed: int = 0, **options: object) -> AttributeNetwork:
    return placket.create_model(
        method,
        schema=data.schema,
        trunk=TRUNK,
        preprocess={"size": 48},
        generator=torch.Generator().manual_seed(seed),
        **OPTIONS[method] | options,
    )


def changed(model: AttributeNetwork, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("batch_norm", ["grouped", "merged", "frozen"])
@pytest.mark.parametrize("method", list(OPTIONS))
def test_everything_learns(drawn: AsenDataset, method: str, batch_norm: str) -> None:
    model = make(drawn, method)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stage = dataclasses.replace(STAGE, batch_norm=batch_norm)
    trainer = Trainer(model, drawn, stage, trainer=QUIET)
    losses = [trainer.step()["triplet_region"] for _ in range(3)]
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    still = set(before) - changed(model, before)
    statistics = {name for name, _ in model.named_buffers()}
    assert still - {BEFORE_NORM} == (statistics if batch_norm == "frozen" else set())


@pytest.mark.parametrize("method", list(OPTIONS))
def test_learns_in_bfloat16(drawn: AsenDataset, method: str) -> None:
    both = method == "asen_plus_plus"
    model = make(drawn, method, **({"patch": TRUNK} if both else {}))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = dataclasses.replace(QUIET, bfloat16=True)
    trainer = Trainer(model, drawn, BOTH if both else STAGE, trainer=settings)
    assert all(math.isfinite(loss) for _ in range(3) for loss in trainer.step().values())
    assert changed(model, before) | {BEFORE_NORM} == set(before) | {BEFORE_NORM}
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("method", list(OPTIONS))
def test_fits_a_small_set_where_it_knows_the_attribute(drawn: AsenDataset, method: str) -> None:
    schedule = dataclasses.replace(STAGE.schedule, factor=1.0)
    stage = dataclasses.replace(STAGE, batch=8, triplets=64, epochs=13, flip=0.0, schedule=schedule)
    trainer = Trainer(make(drawn, method), drawn, stage, trainer=QUIET)
    losses = [trainer.step()["triplet_region"] for _ in range(100)]
    first, last = sum(losses[:20]) / 20, sum(losses[-20:]) / 20
    if method == "triplet":
        # Colour and place are independent: images of one colour and two places cannot be near and far.
        assert 0.03 < last < first
    else:
        assert last < 0.02 < 0.04 < first


def roles(model: AttributeNetwork, batch: _C.Batch) -> list[Tensor]:
    """Embeddings of anchors, positives and negatives by plain PyTorch, each role a pass of its own."""
    table, head = model.attribute_embedding.weight, model.region.head
    weights = {**dict(head.named_parameters()), **dict(head.named_buffers())}
    return [
        reference.asen_v2_head(model.region.trunk(images), table, attributes, weights, True)[0]
        for images, attributes in zip(batch.images.chunk(3), batch.attributes.chunk(3), strict=True)
    ]


def test_losses_of_asen_v2_equal_those_of_plain_pytorch(drawn: AsenDataset) -> None:
    native, plain = (make(drawn, "asen_v2") for _ in range(2))
    stage = dataclasses.replace(STAGE, negative_by_value=False)
    trainer = Trainer(native, drawn, stage, trainer=QUIET)
    ours = [trainer.step()["triplet_region"] for _ in range(8)]
    loader = Loader(
        drawn.split("train"),
        sampler="triplets",
        batch=stage.batch,
        triplets=stage.triplets,
        negative_by_value=False,
        preprocess=_C.Preprocess(**plain.preprocess),
        augment=_C.Augment(flip=stage.flip),
        seed=_C.stage_seed(QUIET.seed, 0),
    )
    adam = torch.optim.Adam(plain.parameters(), lr=1e-3)
    theirs = []
    plain.train()
    for epoch in range(2):
        adam.param_groups[0]["lr"] = 1e-3 * 0.5**epoch
        for batch in loader:
            adam.zero_grad()
            loss = reference.cosine_triplet(*roles(plain, batch)).mean()
            loss.backward()
            adam.step()
            theirs.append(loss.item())
    # The same sums in float32 in another order.
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_second_stage_of_asen_plus_plus_equals_a_python_loop_in_every_bit(drawn: AsenDataset) -> None:
    native, python = (make(drawn, "asen_plus_plus", patch=TRUNK) for _ in range(2))
    trainer = Trainer(native, drawn, BOTH, trainer=QUIET)
    loader = Loader(
        drawn.split("train"),
        sampler="triplets",
        batch=BOTH.batch,
        triplets=BOTH.triplets,
        preprocess=_C.Preprocess(**python.preprocess),
        keep_pixels=True,
        seed=_C.stage_seed(QUIET.seed, 0),
    )
    local = [p for name, p in python.named_parameters() if name.startswith("patch.")]
    whole = [p for name, p in python.named_parameters() if not name.startswith("patch.")]
    adam = torch.optim.Adam([{"params": whole, "lr": 1e-4}, {"params": local, "lr": 1e-3}], fused=True)
    python.train()
    for batch in loader:
        adam.zero_grad()
        pictures = Pictures(batch.pixels, batch.offsets, batch.sizes)
        out = python(batch.images, batch.attributes, pictures, groups=3)
        region, patch = (ops.cosine_triplet(*x.chunk(3), 0.2).mean() for x in (out.region, out.patch))
        align = (1 - (F.normalize(out.region) * F.normalize(out.patch)).sum(1)).clamp_min(0).mean()
        losses = trainer.step()
        assert losses == {
            "triplet_region": region.item(),
            "triplet_patch": patch.item(),
            "region_patch_align": align.item(),
        }
        # As published: the sum over the roles of the mean of 1 - cosine, with weight 0.1.
        roles = (1 - torch.cosine_similarity(out.region, out.patch)).view(3, -1).mean(1)
        assert 0.3 * losses["region_patch_align"] == pytest.approx(0.1 * roles.sum().item(), abs=1e-6)
        (region + 0.1 * patch + 0.3 * align).backward()
        adam.step()
    assert changed(native, make(drawn, "asen_plus_plus", patch=TRUNK).state_dict()) == set(
        native.state_dict()
    )
    assert not changed(native, python.state_dict())


@pytest.mark.parametrize(
    ("method", "stage", "batch_norm"),
    [
        ("asen_v2", STAGE, "grouped"),
        ("asen_v2", STAGE, "merged"),
        ("asen_v2", STAGE, "frozen"),
        ("asen_plus_plus", BOTH, "grouped"),
    ],
)
def test_resumed_equals_uninterrupted(
    drawn: AsenDataset, method: str, stage: StageConfig, batch_norm: str
) -> None:
    stage = dataclasses.replace(stage, batch_norm=batch_norm)
    options = {"patch": TRUNK} if method == "asen_plus_plus" else {}
    whole, first, second = (make(drawn, method, seed, **options) for seed in (0, 0, 9))
    Trainer(whole, drawn, stage, trainer=QUIET).run()
    stopped = Trainer(first, drawn, stage, trainer=QUIET)
    stopped.run(3)
    resumed = Trainer(second, drawn, stage, trainer=dataclasses.replace(QUIET, loader_threads=1))
    resumed.load_state(stopped.state())
    resumed.run()
    assert not changed(second, whole.state_dict())


def test_a_run_of_both_stages(drawn: AsenDataset, tmp_path: Path) -> None:
    config = dataclasses.replace(
        small_config(drawn.root),
        model=ModelConfig(
            name="asen_plus_plus",
            trunk=TRUNK,
            patch=TRUNK,
            attribute_dim=16,
            attention_dim=8,
            patch_attention_dim=12,
            patch_hidden_dim=10,
            embedding_dim=24,
            patch_size=32,
        ),
        stages=(STAGE, BOTH),
    )
    result = placket.train(config, run=tmp_path / "run", progress=False)
    region, both = result.model("region"), result.model()
    assert (region.name, region.config.patch_trunk, region.embedding_dim) == ("asen_plus_plus", "", 24)
    assert (both.config.patch_trunk, both.embedding_dim) == (TRUNK, 48)
    assert both.patch.head.get_parameter("image_proj.weight").shape == (12, 32)
    assert both.patch.head.get_parameter("gate.fc1.weight").shape == (10, 48)
    assert both.region.head.get_parameter("image_proj.weight").shape == (8, 32)
    for stage, model in (("region", region), ("patch", both)):
        assert placket.evaluate(model, drawn, "valid").overall == pytest.approx(result.best[stage], abs=1e-9)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    names = [set(line["losses"]) for line in lines if "losses" in line]
    assert names[0] == {"triplet_region"}
    assert names[-1] == {"triplet_region", "triplet_patch", "region_patch_align"}


def test_region_patch_needs_a_background(drawn: AsenDataset) -> None:
    stage = dataclasses.replace(BOTH, losses={"region_patch": 1.0})
    with pytest.raises(ValueError, match="'region_patch' needs a region head with a background, got 'asen_"):
        Trainer(make(drawn, "asen_plus_plus", patch=TRUNK), drawn, stage, trainer=QUIET)


@pytest.mark.parametrize(
    ("recipe", "epochs", "factor", "every"),
    [
        ("asen", 200, 0.985, 1),
        ("asen_v2", 50, 0.9, 3),
        ("csn", 200, 0.985, 1),
        ("triplet", 200, 0.985, 1),
    ],
)
def test_recipes_are_the_published_ones(recipe: str, epochs: int, factor: float, every: int) -> None:
    config = load_config(recipe)
    (stage,) = config.stages
    assert (config.model.name, config.model.trunk, config.model.patch) == (recipe, "resnet50", None)
    assert (stage.epochs, stage.schedule.factor, stage.schedule.every) == (epochs, factor, every)
    assert (stage.batch, stage.triplets, stage.batch_norm) == (16, 100_000, "grouped")
    assert (stage.rates, stage.losses) == ({"": 1e-4}, {"triplet_region": 1.0})
    assert (stage.flip, stage.negative_by_value, stage.weight_decay) == (0.5, False, 0.0)


def test_recipe_of_asen_plus_plus_is_the_published_one() -> None:
    config = load_config("asen_plus_plus")
    first, second = config.stages
    assert [(s.epochs, s.schedule.factor, s.schedule.every) for s in config.stages] == [
        (50, 0.9, 3),
        (20, 0.9, 1),
    ]
    assert [(s.flip, s.negative_by_value, s.batch, s.triplets) for s in config.stages] == [
        (0.0, True, 16, 100_000)
    ] * 2
    assert (first.branches, first.losses, first.rates) == (("region",), {"triplet_region": 1.0}, {"": 1e-4})
    assert second.losses == {"triplet_region": 1.0, "triplet_patch": 0.1, "region_patch_align": 0.3}
    assert second.rates == {"": 1e-5, "patch.": 1e-4}


@pytest.mark.parametrize("recipe", list(OPTIONS))
def test_models_of_the_recipes_have_the_published_sizes(recipe: str, drawn: AsenDataset) -> None:
    from placket.train import _make_model

    config = load_config(recipe)
    with torch.device("meta"):
        model = _make_model(config, drawn, torch.Generator(), with_patch=config.model.patch is not None)
    assert model.config == dataclasses.replace(model.config_type(), attributes=2)
