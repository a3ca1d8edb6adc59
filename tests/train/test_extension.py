"""Further attributes for a trained model: they are learnt, and nothing else moves a bit."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from small_training import COLOURS, PLACES, SIZE, STAGE, TRUNK, draw_all
from torch import Tensor

import placket
from placket import cli
from placket.config import StageConfig, TrainerConfig
from placket.data import DatasetError
from placket.extension import extend, extends
from placket.index import AttributeIndex, search_image
from placket.models import METHODS
from placket.nn import AttributeNetwork
from placket.train import Trainer

TEACH = StageConfig(
    sampler="images",
    losses={"region_classify": 1.0},
    rates={"": 2e-2},
    new_attributes=1,
    batch_norm="frozen",
    epochs=40,
    batch=12,
)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> placket.data.Dataset:
    root = tmp_path_factory.mktemp("both")
    draw_all(root)
    return placket.data.open(root)


@pytest.fixture(scope="module")
def alone(
    both: placket.data.Dataset, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, placket.data.Dataset]:
    """The same photographs with one attribute each."""
    return {
        name: placket.data.open(keep(both.root, number, name, values, tmp_path_factory.mktemp(name)))
        for number, (name, values) in enumerate({"colour": COLOURS, "place": PLACES}.items())
    }


def keep(root: Path, number: int, name: str, values: tuple[str, ...], out: Path) -> Path:
    shutil.copytree(root / "img", out / "img")
    entry = {"ATTRIBUTES": [name], "ATTRIBUTES_NUM": {name: len(values)}, "VALUES": {name: list(values)}}
    (out / "meta.json").write_text(json.dumps({out.name: entry}))
    for file in root.glob("*.txt"):
        lines = [line.split() for line in file.read_text().splitlines()]
        if file.name.startswith("label"):
            lines = [[i, "0", (v0, v1)[number]] for i, _, v0, _, v1 in lines]
        elif not file.name.startswith("filenames"):
            lines = [[i, "0", v] for i, a, v in lines if int(a) == number]
        (out / file.name).write_text("".join(" ".join(line) + "\n" for line in lines))
    return out


def make(data: placket.data.Dataset, patch: str | None = None, **options: object) -> AttributeNetwork:
    torch.manual_seed(1)
    return placket.create_model(
        "rpf", schema=data.schema, trunk=TRUNK, patch=patch, attribute_dim=16, patch_size=32,
        preprocess={"size": SIZE}, **options,
    ).eval()  # fmt: skip


def photographs(data: placket.data.Dataset) -> Tensor:
    split = data.split("valid")
    loader = placket.data.Loader(
        split, batch=len(split), shuffle=False, drop_last=False,
        preprocess=placket.data.Preprocess(size=SIZE),
    )  # fmt: skip
    return next(iter(loader)).images


@pytest.mark.parametrize("patch", [None, TRUNK])
@pytest.mark.parametrize("project_per_attribute", [False, True])
def test_old_embeddings_stay_to_the_bit_and_the_new_ones_learn(
    patch: str | None,
    project_per_attribute: bool,
    both: placket.data.Dataset,
    alone: dict[str, placket.data.Dataset],
) -> None:
    model = make(alone["colour"], patch, project_per_attribute=project_per_attribute)
    images = photographs(both)
    stage = TEACH
    if patch is not None:
        stage = dataclasses.replace(
            TEACH,
            branches=("region", "patch"),
            losses={"region_classify": 1.0, "patch_classify": 1.0},
        )
    with torch.no_grad():
        before = model.encode(images, ["colour"])
    longer = extend(model, {"place": PLACES}, adapter_rank=4)
    assert longer.schema.names == ("colour", "place")
    state = {name: tensor.clone() for name, tensor in longer.state_dict().items()}
    # Its data may label the new attribute alone, or all.
    for data in (alone["place"], both):
        trainer = Trainer(longer, data, stage, evaluation="valid", trainer=TrainerConfig(seed=5))
        first = trainer.evaluate()
        trainer.run()
        last = trainer.evaluate()
        assert math.isnan(first.per_attribute[0])  # the old one is not asked for

        assert last.per_attribute[1] >= max(0.9, first.per_attribute[1])
        assert extends(longer, model)
        with torch.no_grad():
            assert torch.equal(longer.eval().encode(images, ["colour"]), before)
    after = longer.state_dict()
    changed = {name for name, tensor in state.items() if not torch.equal(tensor, after[name])}
    own = {"attribute_embedding.weight", *(f"region.head.adapter.{part}" for part in ("query", "down", "up"))}
    if project_per_attribute:
        own |= {"region.head.pooled_proj.weight", "region.head.pooled_proj.bias"}
    if patch is not None:
        own |= {f"patch.head.adapter.{part}" for part in ("query", "down", "up")}
    assert changed == own
    assert after.keys() - state.keys() == {f"{branch}.centres" for branch in longer.branches}
    for branch in longer.branches:
        centres = after[f"{branch}.centres"]
        assert not centres[:3].any()  # nothing has learned the old attribute's
        assert centres[3:].any(1).all()


def test_old_class_centres_stay_to_the_bit(
    alone: dict[str, placket.data.Dataset], both: placket.data.Dataset
) -> None:
    model = make(alone["colour"])
    stage = dataclasses.replace(TEACH, new_attributes=0, epochs=4, rates={"": 1e-3})
    Trainer(model, alone["colour"], stage).run()
    images = photographs(both)
    with torch.no_grad():
        (before,) = model.eval().class_probabilities(images, ["colour"])
    assert before.sum(1).allclose(torch.ones(len(before)))
    longer = extend(model, {"place": PLACES}, adapter_rank=4)
    with torch.no_grad():
        assert not longer.eval().class_probabilities(images, ["place"])[0].any()
    Trainer(longer, both, TEACH, trainer=TrainerConfig(seed=5)).run()
    assert extends(longer, model)
    with torch.no_grad():
        (colours,) = longer.eval().class_probabilities(images, ["colour"])
        (places,) = longer.class_probabilities(images, ["place"])
    assert torch.equal(colours, before)
    split = both.split("valid")
    rows = split.labels.attribute == 1
    right = places.argmax(1).numpy()[split.labels.images()[rows]] == split.labels.value[rows]
    assert right.mean() > 0.9


def test_a_second_extension_keeps_the_first(
    alone: dict[str, placket.data.Dataset], both: placket.data.Dataset
) -> None:
    model = make(alone["colour"])
    longer = extend(model, {"place": PLACES}, adapter_rank=4)
    Trainer(longer, both, dataclasses.replace(TEACH, epochs=2)).run()
    images = photographs(both)
    with torch.no_grad():
        before = longer.eval().encode(images, ["colour", "place"])
    longest = extend(longer, {"side": PLACES})
    assert longest.config.adapters_from == 1
    assert longest.config.adapter_rank == 4
    assert longest.region.head.get_parameter("adapter.up").shape == (2, 32, 4)
    renamed = placket.AttributeSchema.of({"side": PLACES})
    split = alone["place"].split("train")
    assert (
        dataclasses.replace(split, schema=renamed).under(longest.schema, 2).labels.attribute.tolist()
        == [2] * 24
    )
    with torch.no_grad():
        assert torch.equal(longest.encode(images, ["colour", "place"]), before)
    assert extends(longest, longer)
    assert extends(longest, model)
    with pytest.raises(ValueError, match="adapter_rank must be 4 as of the adapters there are, got 8"):
        extend(longer, {"side": PLACES}, adapter_rank=8)


@pytest.mark.parametrize(
    "name",
    [name for name, m in METHODS.items() if issubclass(m, AttributeNetwork) and name not in ("rpf", "m3net")],
)
def test_every_method_can_be_extended(
    name: str, both: placket.data.Dataset, alone: dict[str, placket.data.Dataset]
) -> None:
    torch.manual_seed(1)
    options = {"patch": TRUNK, "patch_size": 32} if name == "asen_plus_plus" else {}
    model = placket.create_model(
        name, schema=alone["colour"].schema, trunk=TRUNK, preprocess={"size": SIZE}, **options
    ).eval()
    images = photographs(both)
    with torch.no_grad():
        before = model.encode(images, ["colour"])
    longer = extend(model, {"place": PLACES})
    trainer = Trainer(longer, alone["place"], TEACH, evaluation="valid")
    trainer.run()
    assert trainer.evaluate().per_attribute[1] > 0.9
    with torch.no_grad():
        assert torch.equal(longer.eval().encode(images, ["colour"]), before)
    assert extends(longer, model)


def test_another_model_is_no_extension(alone: dict[str, placket.data.Dataset]) -> None:
    model = make(alone["colour"])
    longer = extend(model, {"place": PLACES})
    assert not extends(model, longer)
    assert not extends(extend(make(alone["colour"], TRUNK), {"place": PLACES}), model)
    with torch.no_grad():
        longer.attribute_embedding.get_parameter("weight")[0, 3] += 1e-3
    assert not extends(longer, model)


def test_errors_name_the_value(both: placket.data.Dataset, alone: dict[str, placket.data.Dataset]) -> None:
    model = make(alone["colour"])
    with pytest.raises(ValueError, match="attributes must be at least one, got none"):
        extend(model, {})
    with pytest.raises(ValueError, match="attributes must have different names, got 'colour' twice"):
        extend(model, {"colour": COLOURS})
    with pytest.raises(DatasetError, match="attribute 'place' must be one of colour with the same values"):
        Trainer(model, both, STAGE)
    schema = alone["colour"].schema
    with pytest.raises(ValueError, match=r"model must not have a class sub-network, .* got m3net; train"):
        extend(placket.create_model("m3net", schema=schema, trunk=TRUNK), {"place": PLACES})
    longer = extend(model, {"place": PLACES})
    for change, message in (
        ({"batch_norm": "merged"}, "batch_norm must be frozen with new_attributes, got merged"),
        ({"weight_decay": 0.1}, "weight_decay must be 0 with new_attributes, got 0.1"),
        ({"new_attributes": 2}, "new_attributes must be from 0 to less than the 2 attributes, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            Trainer(longer, both, dataclasses.replace(TEACH, **change))


def test_commands_teach_an_attribute_and_add_its_space(
    both: placket.data.Dataset, alone: dict[str, placket.data.Dataset], tmp_path: Path
) -> None:
    model = make(alone["colour"])
    model.save(tmp_path / "model")
    index = str(tmp_path / "index")
    assert (
        cli.main(
            ["index", "build", str(tmp_path / "model"), str(both.root), "--split", "valid", "--out", index]
        )
        == 0
    )
    with AttributeIndex.load(index) as opened:
        before = {id: opened.get(id).vectors["colour"] for id in opened.ids()}
    teach = ["train", "--config", "extend", "--model.start", str(tmp_path / "model")]
    settings = {"epochs": "30", "batch": "12", "rates": '{"": 0.02}', "flip": "0", "crop_scale": "1"}
    for key, value in settings.items():
        teach += [f"--stages.extend.{key}", value]
    teach += ["--run", str(tmp_path / "run")]
    assert cli.main([*teach, "--data.root", str(alone["place"].root)]) == 0
    longer = placket.load(tmp_path / "run" / "best")
    assert extends(longer, model)
    add = ["index", "extend", index, str(tmp_path / "run" / "best"), str(both.root), "--split"]
    assert cli.main([*add, "train"]) == 1  # not its images
    assert cli.main([*add, "valid"]) == 0
    with AttributeIndex.load(index) as opened:
        assert list(opened.spaces) == ["colour", "place"]
        for id, vector in before.items():
            assert (opened.get(id).vectors["colour"] == vector).all()
        split = both.split("valid")
        hits = search_image(opened, split.paths[0], ["place"], k=6)
        assert hits[0].id == split.filenames[0]
        assert sum(hit.metadata["labels"]["place"] == ["left"] for hit in hits) >= 5
        assert opened.verify() == []
        # Again, as after an interruption: nothing is left to do.
        assert placket.index.extend(opened, longer, split) == []
        with pytest.raises(ValueError, match=r"model must be the one in .* with further attributes"):
            placket.index.extend(opened, make(both), split)


def test_a_replacement_cut_short_leaves_the_new_model(
    both: placket.data.Dataset, alone: dict[str, placket.data.Dataset], tmp_path: Path
) -> None:
    model = make(alone["colour"])
    with placket.index.build(model, both.split("valid"), tmp_path / "index"):
        pass
    (tmp_path / "index" / "model").rename(tmp_path / "index" / "model.new")
    assert placket.index.load_model(tmp_path / "index").schema.names == ("colour",)
