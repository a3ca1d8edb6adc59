from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import placket
from placket import AttributeSchema, checkpoint
from placket.data import Preprocess
from placket.nn import Rpf

SCHEMA = AttributeSchema.of({"neckline": ["round", "v"], "hem": ["mini", "midi", "maxi"]})
PATCH = "vit,width=16,depth=1,heads=2,patch=8,image=16"


@pytest.fixture(params=[False, True], ids=["shared", "per_attribute"])
def model(request: pytest.FixtureRequest) -> Rpf:
    return placket.create_model(
        "rpf",
        schema=SCHEMA,
        trunk="resnet18,width=0.125,stage=2",
        patch=PATCH,
        attribute_dim=8,
        patch_size=16,
        project_per_attribute=request.param,
    ).eval()


def test_round_trip(model: Rpf, tmp_path: Path) -> None:
    model.preprocess["size"] = 96
    model.save(tmp_path / "a")
    model.save(tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors"]
    state = torch.get_rng_state()
    loaded = placket.load(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)
    assert (loaded.config, loaded.schema, loaded.preprocess) == (model.config, model.schema, model.preprocess)
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(
        loaded(images, "hem", patch=False).embedding, model(images, "hem", patch=False).embedding
    )


def test_config_is_plain_json(model: Rpf) -> None:
    config = json.loads(json.dumps(model.config_dict()))
    assert config["format"] == 1
    assert config["model"]["name"] == "rpf"
    assert config["model"]["trunk"] == "resnet18,width=0.125,stage=2"
    assert config["schema"] == SCHEMA.to_dict()
    assert config["preprocess"]["mean"] == [0.485, 0.456, 0.406]
    preprocess = {"size": 64, "fit": "pad", "box_margin": 0.1, "mean": [0.5] * 3, "std": [0.5] * 3}
    assert model.config_dict(preprocess)["preprocess"] == preprocess


def test_preprocessing_of_older_checkpoints(model: Rpf, tmp_path: Path) -> None:
    """What a field's absence meant when there was none: Pillow's bits, the stored fit."""
    model.preprocess.update(fit="pad", arithmetic="float", target_ratio=2.0)
    model.save(tmp_path)
    assert placket.load(tmp_path).preprocess == model.preprocess
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for key in ("interpolation", "arithmetic", "orientation", "target_ratio"):
        del config["preprocess"][key]
    file.write_text(json.dumps(config))
    loaded = placket.load(tmp_path).preprocess
    assert (loaded["fit"], loaded["interpolation"], loaded["orientation"]) == ("pad", "bilinear", "apply")
    assert (loaded["arithmetic"], loaded["target_ratio"]) == ("pillow", 1.25)
    inputs = Preprocess(**loaded)
    assert (inputs.arithmetic, inputs.target_ratio) == ("pillow", 1.25)


def test_module_of_the_callers(tmp_path: Path) -> None:
    trunk = nn.Conv2d(3, 6, 8, 8)
    model = placket.create_model("rpf", schema=SCHEMA, trunk=trunk, patch=None, attribute_dim=8).eval()
    model.save(tmp_path)
    loaded = placket.load(tmp_path, trunk=nn.Conv2d(3, 6, 8, 8))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.encode_all(images), model.encode_all(images))
    with pytest.raises(
        ValueError, match="load: trunk must be the module that the model was made with, got none"
    ):
        placket.load(tmp_path)


def test_strict_about_tensors(model: Rpf, tmp_path: Path) -> None:
    model.save(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    name = "region.head.norm.bias"
    for tensors, found in (
        ({k: v for k, v in whole.items() if k != name}, f"got '{name}' missing"),
        ({**whole, "extra": torch.zeros(1)}, "got 'extra' unknown"),
        ({**whole, name: torch.zeros(3)}, f"got '{name}' of shape [3] for [{whole[name].numel()}]"),
    ):
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=re.escape(found)):
            placket.load(tmp_path)


def test_damaged_files(model: Rpf, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must be a checkpoint.s folder, got no"):
        placket.load(tmp_path)
    model.save(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        ValueError, match=r"model.safetensors' must be a whole safetensors file, got one with"
    ):
        placket.load(tmp_path)
    config.write_text("{")
    with pytest.raises(ValueError, match=r"config.json' must be JSON, got an error at"):
        placket.load(tmp_path)
    config.write_text(json.dumps({"format": 7}))
    with pytest.raises(ValueError, match=r"config.json' must have format 1, got 7"):
        placket.load(tmp_path)
    config.write_text(json.dumps({"format": 1, "model": {"name": "mystery"}}))
    with pytest.raises(ValueError, match=r"must be one of .*rpf.*, got 'mystery'"):
        placket.load(tmp_path)


def test_failed_write_leaves_the_old_checkpoint(
    model: Rpf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        model.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == before
