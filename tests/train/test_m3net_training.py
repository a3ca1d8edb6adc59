"""M3-Net through the trainer: on generated garments, on drawn bars, with labels that are not there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_training import SIZE, TRUNK
from torch import Tensor

import placket
from placket import _C
from placket.config import LossConfig, StageConfig, TrainerConfig, load_config
from placket.data import AsenDataset, Dataset, Loader
from placket.data import garments as garments_data
from placket.evaluate import classify_split, embed_classes, embed_pairs
from placket.nn import M3Net
from placket.protocols import asfr_map_all, embed_from
from placket.train import Trainer

QUIET = TrainerConfig(report_every=1, checkpoint_every=0)
CLASS_LOSSES = {
    "class_recognition": 1.0,
    "class_cross_entropy": 0.5,
    "class_instance_triplet": 1.0,
    "class_centre_triplet": 1.0,
    "region_contrast": 1.0,
}
STAGE = StageConfig(
    losses=CLASS_LOSSES,
    rates={"": 1e-3},
    epochs=2,
    sampler="classes",
    batch=8,
    images_of_class=4,
    batch_norm="merged",
    flip=0.5,
)
MakeM3Net = Callable[..., M3Net]


@pytest.fixture
def make(drawn: AsenDataset) -> MakeM3Net:
    def make(data: Dataset = drawn, seed: int = 0, trunk: str = TRUNK, **options: object) -> M3Net:
        return placket.create_model(
            "m3net",
            schema=data.schema,
            trunk=trunk,
            attribute_dim=16,
            embedding_dim=16,
            class_dim=8,
            class_query_dim=16,
            class_output_dim=8,
            preprocess={"size": SIZE},
            generator=torch.Generator().manual_seed(seed),
            **options,
        )

    return make


def equal(a: M3Net, b: M3Net) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def by_formulas(model: M3Net, batch: _C.Batch, attribute: int) -> dict[str, Tensor]:
    """The losses of a batch of one attribute, image by image; moves the centres."""
    owners = torch.tensor([n for n, count in enumerate(model.config.values) for _ in range(count)])
    own = (owners == attribute).nonzero().squeeze(1)
    out = model(batch.images, attribute)
    logits, phi = out.class_logits, F.normalize(out.class_embedding, dim=2)
    assert logits is not None
    carried = batch.classes.double()
    weighted = 10 * carried * F.softplus(-logits) + (1 - carried) * F.softplus(logits)
    # Every image carries a value of both attributes.
    recognition = sum(weighted[:, owners == a].mean(1) for a in (0, 1))
    first = torch.tensor([0, int((owners == 0).sum())])
    cross = sum(F.cross_entropy(logits[:, owners == a], batch.labels[:, a], reduction="none") for a in (0, 1))
    classes = batch.values + first[attribute]
    views = torch.stack([phi[i, m] for i, m in enumerate(classes)])
    centres = model.class_centres.double()
    for m in own.tolist():
        if (classes == m).any():
            centres[m] = F.normalize(0.9 * centres[m] + 0.1 * views[classes == m].mean(0).detach(), dim=0)
    instance, centre = [], []
    for i, m in enumerate(classes.tolist()):
        for k in (classes != m).nonzero().squeeze(1).tolist():
            negative = phi[i, m] @ phi[k, m]
            centre.append((0.2 - phi[i, m] @ centres[m].to(phi) + negative).relu())
            for j in (classes == m).nonzero().squeeze(1).tolist():
                if i != j:
                    instance.append((0.2 - phi[i, m] @ phi[j, m] + negative).relu())
    model.class_centres.copy_(centres)
    return {
        "class_recognition": recognition.mean(),
        "class_cross_entropy": cross.mean(),
        "class_instance_triplet": torch.stack(instance).mean(),
        "class_centre_triplet": torch.stack(centre).mean(),
    }


@pytest.mark.parametrize("variant", ["full", "attribute", "class"])
def test_losses_of_three_steps_are_those_of_the_formulas(
    drawn: AsenDataset, make: MakeM3Net, variant: str
) -> None:
    """With frozen weights only the centres move from step to step."""
    losses = {name: weight for name, weight in CLASS_LOSSES.items() if name.startswith("class_")}
    stage = dataclasses.replace(STAGE, losses=losses, batch_norm="frozen", rates={"": 1e-30})
    native, python = make(variant=variant).eval(), make(variant=variant).eval()
    reports: list[_C.Report] = []
    trainer = Trainer(native, drawn, stage, trainer=QUIET, on_report=reports.append)
    trainer.run(3)
    loader = Loader(
        drawn.split("train"),
        sampler="classes",
        batch=8,
        images_of_class=4,
        preprocess=_C.Preprocess(**python.preprocess),
        augment=_C.Augment(flip=0.5),
        seed=_C.stage_seed(QUIET.seed, 0),
    )
    with torch.no_grad():
        for batch, report in zip(loader, reports, strict=False):
            expected = by_formulas(python, batch, int(batch.attributes[0]))
            assert report.losses == pytest.approx({n: x.item() for n, x in expected.items()}, rel=1e-4)
    assert len(reports) == 3
    torch.testing.assert_close(native.class_centres, python.class_centres, atol=1e-6, rtol=0)
    seen = native.class_centres.norm(dim=1)
    assert ((seen == 0) | ((seen - 1).abs() < 1e-5)).all()


@pytest.mark.parametrize("variant", ["full", "attribute", "class"])
def test_every_parameter_learns(drawn: AsenDataset, make: MakeM3Net, variant: str) -> None:
    model, before = make(variant=variant), make(variant=variant)
    Trainer(model, drawn, STAGE, trainer=QUIET).run(1)
    for (name, a), b in zip(model.named_parameters(), before.parameters(), strict=True):
        assert not torch.equal(a, b), name


@pytest.mark.parametrize(
    "changes",
    [
        {"losses": {"triplet_region": 1.0, "class_recognition": 1.0, "class_instance_triplet": 1.0},
         "sampler": "triplets", "batch": 3, "batch_norm": "grouped"},
        {"losses": {"region_contrast": 1.0, "region_classify": 0.5, "class_centre_triplet": 1.0},
         "sampler": "images"},
    ],
    ids=["triplets", "images"],
)  # fmt: skip
def test_losses_of_attributes_and_classes_together(
    drawn: AsenDataset, make: MakeM3Net, changes: dict[str, object]
) -> None:
    stage = dataclasses.replace(STAGE, **changes)
    reports: list[_C.Report] = []
    Trainer(make(), drawn, stage, trainer=QUIET, on_report=reports.append).run(2)
    assert [report.losses.keys() for report in reports] == [stage.losses.keys()] * 2
    assert all(np.isfinite(list(report.losses.values())).all() for report in reports)


def test_resumes_in_every_bit(drawn: AsenDataset, make: MakeM3Net) -> None:
    whole, first, second = make(), make(), make(seed=9)
    Trainer(whole, drawn, STAGE, trainer=QUIET).run()
    stopped = Trainer(first, drawn, STAGE, trainer=QUIET)
    stopped.run(2)
    resumed = Trainer(second, drawn, STAGE, trainer=dataclasses.replace(QUIET, loader_threads=1))
    resumed.load_state(stopped.state())
    resumed.run()
    assert equal(whole, second)
    assert whole.class_centres.any()


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("m3net") / "garments"
    garments_data.generate(root, items=240, size=64, seed=1, workers=1)
    return placket.data.open(root)


def test_learns_on_generated_garments(garments: Dataset, make: MakeM3Net) -> None:
    model = make(garments, trunk="resnet18,width=0.25,stage=2")
    losses = {name: weight for name, weight in CLASS_LOSSES.items() if name != "class_recognition"}
    stage = dataclasses.replace(
        STAGE, losses=losses, sampler="images", batch=16, epochs=20, rates={"": 2e-3}, flip=0.0
    )
    before = placket.evaluate(model, garments, "valid", threads=1)
    Trainer(model, garments, stage, trainer=QUIET).run()
    after = placket.evaluate(model, garments, "valid", threads=1)
    assert after.overall > before.overall + 5


def test_single_label_ranking_never_sees_a_query_s_class(drawn: AsenDataset, make: MakeM3Net) -> None:
    """With the queries' labels permuted, neither an embedding nor an order changes."""
    model = make()
    Trainer(model, drawn, STAGE, trainer=QUIET).run()
    part = drawn.split("valid")
    permuted = part.queries.copy()
    for attribute in (0, 1):
        own = permuted[:, 1] == attribute
        permuted[own, 2] = np.roll(permuted[own, 2], 1)
    assert (permuted != part.queries).any()
    other = dataclasses.replace(part, queries=permuted)
    images, attributes = part.queries[:, 0].astype(np.int64), part.queries[:, 1].astype(np.int64)
    rows = [embed_pairs(model, split, images, attributes, threads=1) for split in (part, other)]
    assert torch.equal(*rows)
    table = placket.embed_split(model, part, threads=1)
    given: list[tuple[list[int], int]] = []

    def embed(ids: np.ndarray, attribute: int) -> Tensor:
        given.append((ids.tolist(), attribute))
        return table[ids, attribute]

    results = [asfr_map_all(queries, part.candidates, embed, drawn.schema)
               for queries in (part.queries, permuted)]  # fmt: skip
    assert given[: len(given) // 2] == given[len(given) // 2 :]
    # The labels do count, in what is relevant.
    assert results[0].overall != results[1].overall
    assert results[0] == asfr_map_all(part.queries, part.candidates, embed_from(table), drawn.schema)


def write_lists(root: Path, data: AsenDataset, labels: list[str]) -> AsenDataset:
    """The drawn train images with other labels."""
    folder = root / data.root.name
    folder.mkdir(parents=True)
    for name in ("meta.json", "filenames_train.txt"):
        (folder / name).write_text((data.root / name).read_text())
    (folder / "img").symlink_to(data.root / "img")
    (folder / "label_train.txt").write_text("\n".join(labels) + "\n")
    return placket.data.open(folder)


def test_values_without_images_and_attributes_without_labels(
    drawn: AsenDataset, make: MakeM3Net, tmp_path: Path
) -> None:
    """Colour 2 has no image, colour 1 one; every third image has no place, one has no label at all."""
    labels = ["0", "1 0 1 1 0"]
    labels += [f"{i} 0 0" if i % 3 == 0 else f"{i} 0 0 1 {i % 2}" for i in range(2, 24)]
    data = write_lists(tmp_path, drawn, labels)
    model = make()
    reports: list[_C.Report] = []
    stage = dataclasses.replace(STAGE, sampler="images", batch=6, losses=CLASS_LOSSES)
    Trainer(model, data, stage, trainer=QUIET, on_report=reports.append, evaluation=None).run()
    assert len(reports) == 8
    assert all(np.isfinite(list(report.losses.values())).all() for report in reports)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert not model.class_centres[2].any()  # never seen
    assert ((model.class_centres[:2].norm(dim=1) - 1).abs() < 1e-5).all()


def test_a_batch_carries_all_labels_of_an_image(drawn: AsenDataset, tmp_path: Path) -> None:
    labels = [f"{i} 0 {i % 3} 0 {(i + 1) % 3} 1 0" if i < 20 else f"{i} 1 1" for i in range(24)]
    data = write_lists(tmp_path, drawn, labels)
    loader = Loader(data.split("train"), batch=24, shuffle=False, preprocess=_C.Preprocess(size=SIZE))
    batch = next(iter(loader))
    assert batch.classes.dtype == torch.bool
    expected = torch.zeros(24, 5, dtype=torch.bool)
    for i in range(24):
        for place in [i % 3, (i + 1) % 3, 3] if i < 20 else [4]:
            expected[i, place] = True
    assert torch.equal(batch.classes, expected)


def test_several_labels_of_an_attribute(drawn: AsenDataset, make: MakeM3Net, tmp_path: Path) -> None:
    """An image that carries the anchor's class too is a positive, and no negative."""
    data = write_lists(tmp_path, drawn, [f"{i} 0 {i % 2} 0 2 1 0" for i in range(24)])
    reports: list[_C.Report] = []
    losses = {"class_recognition": 1.0, "class_instance_triplet": 1.0}
    stage = dataclasses.replace(STAGE, sampler="images", batch=24, epochs=1, losses=losses)
    Trainer(make(), data, stage, trainer=QUIET, on_report=reports.append).run()
    assert reports[0].losses["class_recognition"] > 0
    everyone = write_lists(tmp_path / "all", drawn, [f"{i} 0 0 0 1 0 2 1 0" for i in range(24)])
    Trainer(make(), everyone, stage, trainer=QUIET, on_report=reports.append).run()
    assert reports[1].losses["class_instance_triplet"] == 0  # no negative is left


def test_class_conditioned_table(drawn: AsenDataset, make: MakeM3Net) -> None:
    model = make()
    Trainer(model, drawn, STAGE, trainer=QUIET).run()
    blind = placket.evaluate(model, drawn, "valid", "asfr-multilabel/v1", threads=1)
    told = placket.evaluate(model, drawn, "valid", "asfr-multilabel-class/v1", threads=1)
    assert (blind.protocol, told.protocol) == ("asfr-multilabel/v1", "asfr-multilabel-class/v1")
    assert (told.queries, told.candidates) == (blind.queries, blind.candidates)
    assert told.similarity == "cosine by class + 1 probability of the candidate"
    part = drawn.split("valid")
    images = np.arange(len(part))
    rows, probabilities = embed_classes(model, part, images, 1, threads=1)
    assert (rows.shape, probabilities.shape) == ((18, 2, 8), (18, 2))
    torch.testing.assert_close(rows.norm(dim=2), torch.ones(18, 2))
    scores = (rows[0, 0] @ rows[:, 0].T + probabilities[:, 0]).tolist()
    carried = [any(label == (1, 0) for label in part.labels[i]) for i in range(18)]
    order = sorted(range(1, 18), key=lambda i: -scores[i])
    hits = np.cumsum([carried[i] for i in order])
    expected = np.mean([hits[rank] / (rank + 1) for rank, i in enumerate(order) if carried[i]])
    assert told.metrics["MAP@all"].values["place"][0] == pytest.approx(expected, abs=1e-6)
    rpf = placket.create_model("rpf", schema=drawn.schema, trunk=TRUNK, patch=None)
    with pytest.raises(ValueError, match="must have class embeddings for asfr-multilabel-class/v1, got rpf"):
        placket.evaluate(rpf, drawn, "valid", "asfr-multilabel-class/v1")
    with pytest.raises(ValueError, match="flip must be False with asfr-multilabel-class/v1, got True"):
        placket.evaluate(model, drawn, "valid", "asfr-multilabel-class/v1", flip=True)


def test_classify_split(drawn: AsenDataset, make: MakeM3Net) -> None:
    model, part = make(), drawn.split("valid")
    Trainer(model, drawn, STAGE, trainer=QUIET).run(2)
    model.eval()
    preprocess = _C.Preprocess(**model.preprocess)
    batch = next(iter(Loader(part, batch=len(part), shuffle=False, preprocess=preprocess)))

    def softmax(images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            logits = model(images, 1).class_logits
        assert logits is not None
        return [own.exp() / own.exp().sum(1, keepdim=True) for own in (logits[:, :3], logits[:, 3:])]

    plain, mirrored = softmax(batch.images), softmax(batch.images.flip(3))
    torch.testing.assert_close(classify_split(model, part, batch=5), plain)
    mean = [(one + other) / 2 for one, other in zip(plain, mirrored, strict=True)]
    torch.testing.assert_close(classify_split(model, part, flip=True), mean)
    assert not torch.allclose(mean[1], plain[1], atol=1e-5)  # sides of a bar that the mirror exchanges
    rpf = placket.create_model("rpf", schema=drawn.schema, trunk=TRUNK, patch=None)
    with pytest.raises(ValueError, match="classify_split: model must predict attributes, got rpf"):
        classify_split(rpf, part)


def test_class_losses_need_a_class_sub_network(drawn: AsenDataset) -> None:
    rpf = placket.create_model("rpf", schema=drawn.schema, trunk=TRUNK, patch=None)
    stage = dataclasses.replace(STAGE, losses={"class_recognition": 1.0})
    with pytest.raises(ValueError, match="loss 'class_recognition' needs a head with a class sub-network"):
        Trainer(rpf, drawn, stage, trainer=QUIET)


def test_recipe_fits_the_model(drawn: AsenDataset, make: MakeM3Net) -> None:
    config = load_config("m3net")
    assert (config.model.name, config.stages[0].sampler) == ("m3net", "classes")
    stage = dataclasses.replace(config.stages[0], batch=8, epochs=1)
    reports: list[_C.Report] = []
    Trainer(make(), drawn, stage, loss=LossConfig(), trainer=QUIET, on_report=reports.append).run(1)
    assert reports[0].losses.keys() == stage.losses.keys()
