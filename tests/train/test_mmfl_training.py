"""MMFL-Net: its losses, its training by products and domains, and evaluation by products."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import placket
from placket import _C
from placket.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    StageConfig,
    TrainConfig,
    TrainerConfig,
    load_config,
)
from placket.data import Dataset, Loader, Preprocess, garments
from placket.nn import MmflNet

TRUNK = "resnet18,width=0.25,stage=4"
ALL = {
    "identity": 1.0,
    "triplet_hard": 0.5,
    "triplet_cross_domain": 1.0,
    "positive_distance": 0.1,
    "centre": 5e-4,
    "attribute": 0.5,
}
PREPROCESS = {"size": 64, "fit": "pad"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("products") / "set"
    garments.generate_products(root, products=60, size=64)
    return placket.data.open(root)


@pytest.fixture(scope="module")
def one_kind(drawn: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The same photographs in a table, which knows no domains."""
    split = drawn.split("train")
    rows = [
        f"{name},{product},{'train' if product % 3 else 'valid'},{'ab'[product % 2]}"
        for name, product in zip(split.filenames, split.identities.tolist(), strict=True)
    ]
    root = tmp_path_factory.mktemp("table")
    (root / "rows.csv").write_text("\n".join(["image,product,split,colour", *rows]) + "\n")
    (root / "set.yaml").write_text(
        f"table: rows.csv\nroot: {root}\nimage: photos/{{image}}\nattributes: {{colour: colour}}\n"
        "split: split\nidentity: product\n"
    )
    (root / "photos").symlink_to(drawn.root)
    return placket.data.open(root / "set.yaml")


def make(data: Dataset, **options: object) -> MmflNet:
    model = placket.create_model(
        "mmfl",
        schema=data.schema,
        trunk=TRUNK,
        embedding_dim=16,
        preprocess=PREPROCESS,
        generator=torch.Generator().manual_seed(0),
        **options,
    )
    assert isinstance(model, MmflNet)
    return model


def stage(**options: object) -> StageConfig:
    settings: dict[str, object] = {
        "name": "product",
        "branches": ("product",),
        "sampler": "products",
        "batch": 12,
        "images_of_class": 4,
        "losses": ALL,
        "batch_norm": "merged",
        "rates": {"": 1e-3},
        "epochs": 1,
        **options,
    }
    return StageConfig(**settings)  # type: ignore[arg-type]


def training_tensor(trainer: placket.Trainer, name: str) -> Tensor:
    """Return a tensor that only training has."""
    return trainer.state().trainer[name]


def hardest(
    rows: Tensor, labels: Tensor, domains: Tensor | None, margin: float | None
) -> tuple[float, float]:
    """The triplet loss and its absolute term, pair by pair."""
    unit = F.normalize(rows, dim=1)
    terms, farthest = [], []
    for i in range(len(unit)):
        others = [j for j in range(len(unit)) if j != i and (domains is None or domains[j] != domains[i])]
        distance = {j: float((unit[i] - unit[j]).norm()) for j in others}
        positives = [distance[j] for j in others if labels[j] == labels[i]]
        negatives = [distance[j] for j in others if labels[j] != labels[i]]
        farthest += [max(positives)] if positives else []
        if positives and negatives:
            x = max(positives) - min(negatives)
            terms.append(max(0.0, x + margin) if margin is not None else float(np.log1p(np.exp(x))))
    return float(np.mean(terms)), float(np.mean(farthest))


@pytest.mark.parametrize("soft", [False, True])
def test_losses_are_as_defined(drawn: Dataset, soft: bool) -> None:
    model = make(drawn)
    loss = LossConfig(margin=0.3, soft_margin=soft, positive_weight=4.0)
    settings = TrainerConfig(seed=3)
    trainer = placket.Trainer(model, drawn, stage(batch_norm="frozen"), loss=loss, trainer=settings)
    classifiers = training_tensor(trainer, "identity_classifiers").clone()
    assert classifiers.std() == pytest.approx(1e-3, rel=0.1)
    found = trainer.step()

    plain = make(drawn).train()
    plain.trunk.freeze_batch_norm = True
    split = drawn.split("train")
    batch = next(
        iter(
            Loader(
                split,
                batch=12,
                sampler="identities",
                images_of_class=4,
                balance_domains=True,
                preprocess=Preprocess(**model.preprocess),
                seed=_C.stage_seed(3, 0),
            )
        )
    )
    images = batch.plan.images
    products = torch.from_numpy(np.unique(split.identities, return_inverse=True)[1][images])
    domains = torch.from_numpy(split.domains.astype(np.int64)[images])
    assert domains.view(-1, 4).sum(1).tolist() == [2, 2, 2]
    with torch.no_grad():
        out = plain(batch.images)
    whole = out.features[:, [0, 1, 4, 8]]  # global, the towers' own, local
    logits = torch.einsum("nge,gpe->gnp", out.necks, classifiers)
    identity = np.mean([float(F.cross_entropy(x, products, label_smoothing=0.1)) for x in logits])
    assert found["identity"] == pytest.approx(identity, rel=1e-4)
    margin = None if soft else 0.3
    for name, across in (("triplet_hard", None), ("triplet_cross_domain", domains)):
        terms = [hardest(rows, products, across, margin) for rows in whole.unbind(1)]
        assert found[name] == pytest.approx(np.mean([t for t, _ in terms]), rel=1e-4), name
    assert found["positive_distance"] == pytest.approx(np.mean([d for _, d in terms]), rel=1e-4)
    assert found["centre"] == pytest.approx(float(whole.square().sum(2).mean() / 2), rel=1e-4)
    parts = []
    for a, own in enumerate(out.attribute_logits.split(drawn.schema.value_counts, 1)):
        target = F.one_hot(batch.labels[:, a], own.shape[1]).float()
        weight = torch.tensor(4.0)
        parts.append(F.binary_cross_entropy_with_logits(own, target, pos_weight=weight))
    assert found["attribute"] == pytest.approx(float(sum(parts)), rel=1e-4)

    centres = training_tensor(trainer, "product_centres")
    rows = whole.flatten(1)
    for product in range(len(centres)):
        own = rows[products == product]
        moved = 0.5 * own.sum(0) / (1 + len(own))
        torch.testing.assert_close(centres[product], moved, rtol=1e-4, atol=1e-5)


def test_training_finds_products(drawn: Dataset) -> None:
    """Products that it never saw are found better than before, and better than by chance."""
    model = make(drawn)
    before = placket.evaluate(model, drawn, protocol="c2s-topk/v1")
    trainer = placket.Trainer(model, drawn, stage(epochs=30, batch=32, rates={"": 2e-3}))
    trainer.run()
    after = placket.evaluate(model, drawn, protocol="c2s-topk/v1")
    assert after.metrics["mAP"].overall > before.metrics["mAP"].overall


def test_an_interrupted_training_is_the_same(drawn: Dataset) -> None:
    def trained(stops: tuple[int, ...]) -> dict[str, Tensor]:
        model = make(drawn)
        trainer = placket.Trainer(model, drawn, stage(epochs=2), evaluation="valid")
        for steps in stops:
            trainer.run(steps)
            state = trainer.state()
            model = make(drawn)
            trainer = placket.Trainer(model, drawn, stage(epochs=2), evaluation="valid")
            trainer.load_state(state)
        trainer.run()
        return {**model.state_dict(), **trainer.state().trainer}

    whole, parts = trained(()), trained((2, 1))
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


def test_products_of_one_kind(one_kind: Dataset) -> None:
    model = make(one_kind)
    losses = {"identity": 1.0, "triplet_hard": 1.0, "positive_distance": 0.1}
    trainer = placket.Trainer(model, one_kind, stage(losses=losses), evaluation="valid")
    assert 0 < trainer.evaluate().overall < 1
    found = trainer.step()
    assert found["triplet_hard"] > 0
    assert found["positive_distance"] > 0
    with pytest.raises(ValueError, match="'triplet_cross_domain' needs photos of shops and of consumers"):
        placket.Trainer(model, one_kind, stage())
    result = placket.evaluate(model, one_kind, split="valid", protocol="inshop-recall/v1")
    assert sum(result.queries.values()) > 0


def test_attributes_that_nothing_is_known_of(drawn: Dataset) -> None:
    """Rows without any label take no part: the loss is 0, and moves nothing."""
    train = drawn.split("train")
    bare = replace(train, labels=placket.data.Labels.of([[]] * len(train), drawn.schema.value_counts))
    drawn_without = _With(drawn, bare)
    model = make(drawn)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = placket.Trainer(model, drawn_without, stage(losses={"attribute": 1.0}, batch_norm="frozen"))
    assert trainer.step() == {"attribute": 0.0}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class _With(Dataset):
    """A data set with another training split."""

    def __init__(self, data: Dataset, split: placket.data.Split) -> None:
        super().__init__(data.root, data.schema, data.splits)
        self._loaded["train"] = split


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branches": ("region",)}, "stage: branch must be one of product, got 'region'"),
        (
            {"losses": {"triplet_region": 1.0}},
            "stage: loss must be one of identity, .*, got 'triplet_region'",
        ),
        ({"batch_norm": "grouped"}, "stage: batch_norm must be one of merged, frozen, got 'grouped'"),
        ({"sampler": "triplets"}, "stage: sampler must be one of products, images, got 'triplets'"),
        ({"images_of_class": 5}, "stage: batch must be a multiple of images_of_class 5, got 12"),
        ({"recompute": 2}, "stage: new_attributes and recompute must be 0 for products, got 0 and 2"),
    ],
)
def test_what_a_stage_refuses(drawn: Dataset, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        placket.Trainer(make(drawn), drawn, stage(**options))


def test_what_a_head_does_not_have_cannot_learn(drawn: Dataset) -> None:
    with pytest.raises(ValueError, match="stage: loss 'attribute' needs a head with attributes, got 'mmfl"):
        placket.Trainer(make(drawn, attributes=False), drawn, stage())


def test_trains_from_a_configuration(drawn: Dataset, tmp_path: Path) -> None:
    recipe = load_config("mmfl")
    assert recipe.stages[0].schedule.milestones == (40, 70)
    config = TrainConfig(
        model=ModelConfig(name="mmfl", trunk=TRUNK, embedding_dim=16, stripes=(2,)),
        data=DataConfig(root=str(drawn.root), size=64, fit="pad"),
        loss=recipe.loss,
        stages=(replace(recipe.stages[0], epochs=2, batch=16),),
        trainer=TrainerConfig(tensorboard=False),
    )
    result = placket.train(config, run=tmp_path / "run", progress=False)
    model = result.model()
    assert isinstance(model, MmflNet)
    assert model.config.stripes == (2,)
    assert result.best["product"] is not None
