"""Checkpoints of the published code of ASEN, ASEN v2, CSN and ASEN++."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plain_asen import PlainAsen, PlainAsenPlusPlus, PlainAsenV2, PlainCsn
from torch import Tensor, nn

import placket
from placket import AttributeSchema, weights
from placket.cli import main
from placket.nn import joint_embedding

SCHEMA = AttributeSchema.of({name: ["no", "yes"] for name in ("neckline", "sleeve", "hem")})


def plain(method: str) -> nn.Module:
    """A small network of the published names with random weights and statistics."""
    made = {
        "asen": lambda: PlainAsen(3, channels=128, width=12, hidden=9, embedding=20),
        "asen_v2": lambda: PlainAsenV2(3, channels=64, width=12, hidden=9),
        "csn": lambda: PlainCsn(3, channels=32, embedding=20),
        "asen_plus_plus": lambda: PlainAsenPlusPlus(3, table=12, embedding=20),
    }[method]()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return made.eval()


def saved(method: str, network: nn.Module, path: Path) -> dict[str, Tensor]:
    """Write a checkpoint as the published code does; return its tensors."""
    if method == "asen_plus_plus":
        tensors = network.state_dict()
        torch.save({"epoch": 20, "model": tensors, "mAP": np.float64(0.64)}, path)
        return tensors
    tensors = {f"embeddingnet.{name}": tensor for name, tensor in network.state_dict().items()}
    trunk = "embeddingnet.embeddingnet" if method == "csn" else "embeddingnet.backbonenet"
    # The published trunk of these three is a whole ResNet, of which the end is not used.
    tensors |= {f"{trunk}.layer4.0.conv1.weight": torch.zeros(2, 2), f"{trunk}.fc.bias": torch.zeros(3)}
    torch.save({"epoch": 50, "state_dict": tensors, "prec": 0.6}, path)
    return tensors


@pytest.mark.parametrize("method", ["asen", "asen_v2", "csn"])
def test_converted_model_embeds_as_the_published_one(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, path = plain(method), tmp_path / "model_best.pth.tar"
    theirs = saved(method, network, path)
    assert main(["convert", str(path), str(tmp_path / "out")]) == 0
    model = placket.load(tmp_path / "out")
    assert (model.name, model.schema.names) == (method, ("attribute 0", "attribute 1", "attribute 2"))
    images, ids = torch.randn(3, 3, 64, 48), torch.tensor([2, 0, 1])
    with torch.no_grad():
        ours, expected = model(images, ids).embedding, network(images, ids)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    table = capsys.readouterr().out
    lines = [line.split(maxsplit=2) for line in table.splitlines()[:-1]]
    taken = {name: origin.removeprefix("from ") for status, name, origin in lines if status == "taken"}
    left = {name: reason for status, name, reason in lines if status == "left"}
    assert taken.keys() == model.state_dict().keys()
    # Every tensor is accounted for, none twice.
    assert sorted([*taken.values(), *left]) == sorted(theirs)
    for name, reason in left.items():
        if name.endswith("num_batches_tracked"):
            assert reason == "a counter that nothing here needs"
        elif ".layer4." in name:
            assert reason == "beyond where this trunk ends"
        else:
            assert (name.rsplit(".", 2)[1], reason) == ("fc", "classifier")


def test_converted_asen_plus_plus_embeds_as_the_published_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, path = plain("asen_plus_plus"), tmp_path / "model_best.pth.tar"
    saved("asen_plus_plus", network, path)
    assert main(["convert", str(path), str(tmp_path / "out")]) == 0
    table = capsys.readouterr().out
    assert re.search(r"left +choices.local.attrnet.attr_embedding.weight +the attribute table again", table)
    assert "not part of this model" not in table
    model = placket.load(tmp_path / "out")
    config = model.config
    assert (config.trunk, config.patch_trunk) == ("resnet50,width=0.125", "resnet34,width=0.125")
    assert (config.patch_size, config.region_weight, config.box_threshold) == (112, 0.6, 0.1)
    images, crops, ids = torch.randn(3, 3, 64, 48), torch.randn(3, 3, 32, 32), torch.tensor([2, 0, 1])
    with torch.no_grad():
        ours = model(images, ids, patch=False).region, model.patch_embedding(crops, ids)
        expected = network(images, ids), network(crops, ids, "local")
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
        # The published test embeds as [sqrt(0.6) global, sqrt(0.4) local] of normalised embeddings.
        joint = torch.hstack([0.6**0.5 * F.normalize(expected[0]), 0.4**0.5 * F.normalize(expected[1])])
    torch.testing.assert_close(joint_embedding(*ours, config.region_weight), joint, rtol=0, atol=1e-5)


def test_first_stage_of_asen_plus_plus(tmp_path: Path) -> None:
    whole, path = plain("asen_plus_plus"), tmp_path / "checkpoint.pth.tar"
    both = saved("asen_plus_plus", whole, path)
    first = {name: tensor for name, tensor in both.items() if not name.startswith("choices.local.")}
    torch.save({"epoch": 50, "model": first, "mAP": 0.6}, path)
    weights.convert(path, tmp_path / "out", schema=SCHEMA)
    model = placket.load(tmp_path / "out")
    assert (model.config.patch_trunk, model.schema) == ("", SCHEMA)
    images, ids = torch.randn(2, 3, 64, 48), torch.tensor([2, 0])
    with torch.no_grad():
        ours, expected = model(images, ids).embedding, F.normalize(whole(images, ids))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    # A model without the local branch takes from the second stage what it has.
    torch.save({"epoch": 20, "model": both, "mAP": 0.6}, path)
    report = weights.load_reference(model, path)
    assert report.left["choices.local.basenet.conv1.weight"] == "not part of this model"
    torch.save({"epoch": 50, "model": first, "mAP": 0.6}, path)
    options = {"trunk": model.config.trunk, "patch": "resnet34,width=0.125", "attribute_dim": 12}
    options |= {"embedding_dim": 20, "attention_dim": 10, "hidden_dim": 9}
    larger = placket.create_model("asen_plus_plus", schema=SCHEMA, **options)
    before = {name: tensor.clone() for name, tensor in larger.state_dict().items()}
    with pytest.raises(ValueError, match=r"must hold 'choices.local.basenet.conv1.weight'"):
        weights.load_reference(larger, path)
    torch.testing.assert_close(larger.state_dict(), before, rtol=0, atol=0)


def test_the_data_set_names_the_attributes(tmp_path: Path) -> None:
    path = tmp_path / "model_best.pth.tar"
    saved("csn", plain("csn"), path)
    entry = {
        "ATTRIBUTES": list(SCHEMA.names),
        "ATTRIBUTES_NUM": dict.fromkeys(SCHEMA.names, 2),
        "VALUES": {name: ["no", "yes"] for name in SCHEMA.names},
    }
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.json").write_text(json.dumps({"data": entry}))
    (tmp_path / "data" / "filenames_train.txt").write_text("a.jpg\n")
    (tmp_path / "data" / "label_train.txt").write_text("0 0 1\n")
    assert main(["convert", str(path), str(tmp_path / "out"), "--data", str(tmp_path / "data")]) == 0
    assert placket.load(tmp_path / "out").schema == SCHEMA


@pytest.mark.parametrize(
    ("method", "missing"),
    [
        ("asen", "embeddingnet.conv2.bias"),
        ("asen_v2", "embeddingnet.img_bn1.running_var"),
        ("csn", "embeddingnet.embed_fc.weight"),
        ("asen_plus_plus", "choices.local.attnnet.fc2.weight"),
    ],
)
def test_missing_tensor_is_named(method: str, missing: str, tmp_path: Path) -> None:
    path = tmp_path / "model_best.pth.tar"
    tensors = saved(method, plain(method), path)
    torch.save({"model": {name: tensor for name, tensor in tensors.items() if name != missing}}, path)
    with pytest.raises(ValueError, match=f"must hold '{re.escape(missing)}', got"):
        weights.convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_misshapen_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model_best.pth.tar"
    tensors = saved("asen", plain("asen"), path)
    torch.save({"state_dict": tensors | {"embeddingnet.conv1.weight": torch.zeros(12, 7, 1, 1)}}, path)
    message = (
        "weights: 'region.head.image_proj.weight' must have shape [12, 128], got [12, 7, 1, 1] from "
        f"'embeddingnet.conv1.weight' of '{path}'"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        weights.convert(path, tmp_path / "out")


def test_what_would_change_the_embedding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model_best.pth.tar"
    tensors = saved("asen_v2", plain("asen_v2"), path)
    torch.save({"state_dict": tensors | {"embeddingnet.feature_fc.weight": torch.zeros(64, 64)}}, path)
    with pytest.raises(ValueError, match=r"has no projection, got 'embeddingnet.feature_fc.weight'"):
        weights.convert(path, tmp_path / "out")
    tensors = saved("asen_plus_plus", plain("asen_plus_plus"), path)
    table = "choices.local.attrnet.attr_embedding.weight"
    torch.save({"model": tensors | {table: tensors[table] + 1}}, path)
    with pytest.raises(ValueError, match=f"table for both branches, got another one in '{table}'"):
        weights.convert(path, tmp_path / "out")


def test_model_and_schema_must_fit(tmp_path: Path) -> None:
    path = tmp_path / "model_best.pth.tar"
    saved("csn", plain("csn"), path)
    two = AttributeSchema.of({"hem": ["mini", "midi"], "fit": ["slim", "wide"]})
    with pytest.raises(ValueError, match="schema must have the checkpoint's 3 attributes, got 2"):
        weights.convert(path, tmp_path / "out", schema=two)
    network = placket.create_model("triplet", schema=two, trunk="resnet18,width=0.125")
    message = "model must be one of asen, asen_v2, csn, asen_plus_plus, rpf, got one of triplet"
    with pytest.raises(ValueError, match=message):
        weights.load_reference(network, path)
    network = placket.create_model("asen", schema=SCHEMA, trunk="resnet18,width=0.125")
    with pytest.raises(ValueError, match=r"must hold 'embeddingnet.backbonenet.conv1.weight', got"):
        weights.load_reference(network, path)


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_scores_as_old_and_new_numpy_pickle_them(core: bytes, tmp_path: Path) -> None:
    """Files of 2020 name a module that NumPy 2 has renamed, and are no zip archives."""
    path = tmp_path / "model_best.pth.tar"
    content = {"epoch": 1, "state_dict": {"weight": torch.ones(2)}, "prec": np.float64(0.6)}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    written = re.sub(rb"numpy\._?core\.multiarray", core + b".multiarray", path.read_bytes())
    assert core + b".multiarray" in written
    path.write_bytes(written)
    assert torch.equal(weights.read(path)["weight"], torch.ones(2))
