from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import placket
from placket import AttributeSchema
from placket.config import StageConfig, TrainConfig, dump, from_dict, load_config, to_dict
from placket.data import Preprocess
from placket.train import _make_model, _native_stage


def test_round_trip(tmp_path: Path) -> None:
    config = load_config("rpf.yaml")
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))
    assert load_config(file) == config
    assert from_dict(to_dict(config)) == config
    assert yaml.safe_load(dump(config))["placket_version"] == placket.__version__


def test_defaults_need_no_file(tmp_path: Path) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    assert load_config(empty) == TrainConfig()


def test_a_file_comes_before_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rpf.yaml").write_text("trainer: {seed: 99}")
    assert load_config("rpf.yaml").trainer.seed == 99
    assert load_config("rpf").trainer.seed == 1234
    with pytest.raises(FileNotFoundError, match=r"'rpfx.yaml' must be a file or a shipped recipe \(.*rpf"):
        load_config("rpfx.yaml")


def test_every_augmentation_reaches_the_core() -> None:
    given = {
        "flip": 0.25,
        "crop_scale": 0.5,
        "color_jitter": {"brightness": 0.1, "contrast": 0.2, "saturation": 0.3, "hue": 0.4, "p": 0.5},
        "grayscale": 0.125,
        "blur": {"kernel_size": 5, "sigma": [0.5, 1.5], "p": 0.75},
        "erasing": {"p": 0.5, "scale": [0.1, 0.2], "ratio": [0.5, 2.0], "value": 1.0},
        "random_crop": {"padding": 10},
    }
    augment = _native_stage(from_dict({"stages": [given]}).stages[0]).augment
    for key, value in given.items():
        fields = value if isinstance(value, dict) else {key: value}
        owner = getattr(augment, key) if isinstance(value, dict) else augment
        assert {name: getattr(owner, name) for name in fields} == fields


def test_preprocessing_reaches_the_model() -> None:
    given = {
        "size": 32,
        "fit": "target_pad",
        "target_ratio": 1.5,
        "interpolation": "bicubic",
        "arithmetic": "float",
        "orientation": "ignore",
        "box_margin": 0.25,
    }
    config = from_dict({"data": given, "model": {"trunk": "resnet18,width=0.125,stage=2"}})
    data = SimpleNamespace(schema=AttributeSchema.of({"hem": ["mini", "maxi"]}))
    model = _make_model(config, data, torch.Generator(), with_patch=False)  # type: ignore[arg-type]
    inputs = Preprocess(**model.preprocess)
    assert {key: getattr(inputs, key) for key in given} == given


def test_recipe_is_the_published_one() -> None:
    region, patch = load_config("rpf").stages
    assert region.losses == {"triplet_region": 1.0}
    assert patch.losses == {"triplet_region": 1.0, "triplet_patch": 0.1, "region_patch": 0.04}
    assert (region.rates, patch.rates) == ({"": 5e-5}, {"": 1e-5, "patch.": 5.5e-5})
    assert [(s.epochs, s.batch, s.triplets, s.batch_norm) for s in (region, patch)] == [
        (50, 16, 100_000, "grouped")
    ] * 2
    assert (region.flip, patch.flip) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"modle": {}}, "config: modle must be a key that exists, got 'modle'; closest is model"),
        ({"stages": [{}, {"epoch": 1}]}, r"stages\.1\.epoch .*closest is stages\.1\.epochs"),
        (
            {"stages": [{"schedule": {"kind": "steps"}}]},
            "schedule.kind must be one of step, milestones, cosine, got 'steps'",
        ),
        ({"stages": [{"epochs": 1.5}]}, r"config: stages\.0\.epochs must be an integer, got 1\.5"),
        ({"trainer": {"seed": True}}, r"config: trainer\.seed must be an integer, got True"),
        ({"stages": [{"rates": {"patch.": "fast"}}]}, r"rates\.patch\. must be a number, got 'fast'"),
        ({"stages": {"a": 1}}, "config: stages must be a list"),
        ({"stages": []}, "config: stages must be at least one"),
        ({"stages": [{"name": "a"}, {"name": "a"}]}, "config: names of stages must differ"),
        ({"model": None}, "config: model must be a mapping, got None"),
        ([1], "config: the file must be a mapping"),
    ],
)
def test_errors(data: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(data)  # type: ignore[arg-type]


def test_error_of_a_file_names_it(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("trainer: {sed: 1}")
    with pytest.raises(ValueError, match=r"closest is trainer\.seed \(in .*x\.yaml\)"):
        load_config(file)
    file.write_text("trainer: {")
    with pytest.raises(ValueError, match=r"config: .*x\.yaml must be YAML"):
        load_config(file)


def test_numbers_as_people_write_them() -> None:
    # YAML 1.1 takes 5e-5 for a string and 1 for an integer.
    config = from_dict(yaml.safe_load("stages: [{rates: {'': 5e-5}, weight_decay: 1}]"))
    assert config.stages[0] == dataclasses.replace(StageConfig(), rates={"": 5e-5}, weight_decay=1.0)
