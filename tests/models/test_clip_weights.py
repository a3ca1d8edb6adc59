"""The converter of CLIP's weights takes every tensor or refuses by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from clip_peers import assert_near, randomize, texts
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from placket import cli, weights
from placket.nn import Clip

# Heads as OpenAI has them, one for each 64 channels, since an archive of theirs does not say them.
OPENAI = "clip_vit,width=128,depth=1,heads=2,mlp=512,patch=8,image=16,embedding_dim=20,activation=quick_gelu"
OPENAI_TEXT = (
    "clip_text,width=64,depth=2,heads=1,mlp=256,context=12,vocabulary=99,embedding_dim=20,"
    "activation=quick_gelu,pool=argmax"
)
RESNET = "clip_resnet,layers=1/2/1/3,width=8,heads=4,image=64,embedding_dim=20"
VIT = "clip_vit,width=32,depth=2,heads=4,mlp=80,patch=8,image=32,embedding_dim=20,activation=gelu"
TEXT = (
    "clip_text,width=24,depth=3,heads=3,mlp=96,context=12,vocabulary=99,embedding_dim=20,activation=gelu,"
    "pool=argmax"
)
NUMBERS = {"input_resolution": torch.tensor(16), "context_length": torch.tensor(12)}


def made(image: str = VIT, text: str = TEXT) -> Clip:
    model = Clip(image, text)
    randomize(model)
    return model.eval()


def tensors(model: Clip) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def write_open_clip(folder: Path, state: dict[str, Tensor], **changes: Any) -> Path:
    """A folder as open_clip writes it, of ``VIT`` and ``TEXT``, with changes of its configuration."""
    folder.mkdir(exist_ok=True)
    config: dict[str, Any] = {
        "vision_cfg": {"layers": 2, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 32},
        "text_cfg": {"width": 24, "heads": 3, "layers": 3, "context_length": 12, "vocab_size": 99},
    }
    for part, values in changes.items():
        config.setdefault(part, {}).update(values)
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
    content = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by transformers' names, without the converter's table."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tower = "vision_model" if name.startswith("visual.") else "text_model"
        rest = name.removeprefix("visual.").replace("transformer.resblocks.", "encoder.layers.")
        if ".attn.in_proj_" in rest:
            block, leaf = rest.split(".attn.in_proj_")
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                theirs[f"{tower}.{block}.self_attn.{part}_proj.{leaf}"] = rows.clone()
            continue
        if name == "logit_scale":
            theirs[name] = tensor
        elif name in ("visual.proj", "text_projection"):
            whole = "visual_projection.weight" if name == "visual.proj" else "text_projection.weight"
            theirs[whole] = tensor.T.contiguous()
        else:
            for ours, other in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
                ("ln_pre", "pre_layrnorm"),
                ("ln_post", "post_layernorm"),
                ("ln_final", "final_layer_norm"),
                ("class_embedding", "embeddings.class_embedding"),
                ("positional_embedding", "embeddings.position_embedding.weight"),
                ("conv1", "embeddings.patch_embedding"),
                ("token_embedding", "embeddings.token_embedding"),
            ):
                rest = rest.replace(ours, other)
            theirs[f"{tower}.{rest}"] = tensor
    return theirs


HUGGING_FACE_CONFIG: dict[str, Any] = {
    "vision_config": {"num_attention_heads": 4, "hidden_act": "gelu"},
    "text_config": {"num_attention_heads": 3, "hidden_act": "gelu", "eos_token_id": 2},
}


def write_hugging_face(folder: Path, state: dict[str, Tensor], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or HUGGING_FACE_CONFIG))
    torch.save(hugging_face(state), folder / "pytorch_model.bin")
    return folder


def check(model: Clip, out: Path, image: str, text: str) -> Clip:
    """What was written is this model, by these descriptions."""
    loaded = Clip.load(out)
    assert (loaded.image, loaded.text) == (image, text)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    return loaded


def test_openai_state_dict(tmp_path: Path) -> None:
    model = made(OPENAI, OPENAI_TEXT)
    torch.save(tensors(model) | NUMBERS, tmp_path / "ViT.pt")
    report = weights.convert(tmp_path / "ViT.pt", tmp_path / "out")
    check(model, tmp_path / "out", OPENAI, OPENAI_TEXT)
    assert report.taken == {name: name for name in model.state_dict()}
    assert report.left == dict.fromkeys(NUMBERS, "a number that the tensors' shapes say too")


class Archived(nn.Module):
    """Parameters and numbers as OpenAI's archives have them, in half precision."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            *path, leaf = name.split(".")
            owner: nn.Module = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            if name in NUMBERS:
                owner.register_buffer(leaf, tensor)
            else:
                owner.register_parameter(leaf, nn.Parameter(tensor.half(), requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_openai_archive(tmp_path: Path) -> None:
    model = made(OPENAI, OPENAI_TEXT)
    torch.jit.save(torch.jit.script(Archived(tensors(model) | NUMBERS)), tmp_path / "ViT.pt")
    weights.convert(tmp_path / "ViT.pt", tmp_path / "out")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    check(model, tmp_path / "out", OPENAI, OPENAI_TEXT)


def test_open_clip_folder(tmp_path: Path) -> None:
    model = made()
    source = write_open_clip(tmp_path / "theirs", tensors(model))
    weights.convert(source, tmp_path / "out")
    loaded = check(model, tmp_path / "out", VIT, TEXT)
    assert loaded.preprocess["mean"] == [0.5, 0.4, 0.3]
    assert loaded.preprocess["std"] == [0.2, 0.2, 0.1]
    assert (loaded.preprocess["size"], loaded.preprocess["interpolation"]) == (32, "bicubic")


def test_open_clip_resnet(tmp_path: Path) -> None:
    text = TEXT.replace("activation=gelu", "activation=quick_gelu")
    model = made(RESNET, text)
    counters = {"visual.bn1.num_batches_tracked": torch.tensor(3)}
    source = write_open_clip(
        tmp_path / "theirs",
        tensors(model) | counters,
        vision_cfg={"layers": [1, 2, 1, 3], "width": 8, "head_width": 64, "image_size": 64},
    )
    config = json.loads((source / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (source / "open_clip_config.json").write_text(json.dumps(config))
    report = weights.convert(source / "open_clip_model.safetensors", tmp_path / "out")
    check(model, tmp_path / "out", RESNET, text)
    assert report.left == dict.fromkeys(counters, "a counter that nothing here needs")


def test_hugging_face_folder(tmp_path: Path) -> None:
    model = made()
    source = write_hugging_face(tmp_path / "theirs", tensors(model))
    (source / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.4, 0.3]}')
    report = weights.convert(source, tmp_path / "out")
    loaded = check(model, tmp_path / "out", VIT, TEXT)
    assert loaded.preprocess["mean"] == [0.5, 0.4, 0.3]
    block = "text_model.encoder.layers.0.self_attn"
    assert report.taken["transformer.resblocks.0.attn.in_proj_bias"] == (
        f"{block}.q_proj.bias, {block}.k_proj.bias, {block}.v_proj.bias"
    )


def test_old_hugging_face_files_hold_position_ids(tmp_path: Path) -> None:
    model = made()
    source = write_hugging_face(tmp_path / "theirs", tensors(model))
    state = torch.load(source / "pytorch_model.bin")
    ids = {f"{tower}_model.embeddings.position_ids": torch.arange(9) for tower in ("text", "vision")}
    torch.save(state | ids, source / "pytorch_model.bin")
    report = weights.convert(source, tmp_path / "out")
    assert report.left == dict.fromkeys(ids, "0, 1, 2, ..., which is counted here")


def test_descriptions_in_place_of_a_configuration(tmp_path: Path) -> None:
    model = made()
    save_file(tensors(model), tmp_path / "bare.safetensors")
    source = str(tmp_path / "bare.safetensors")
    cli.main(["convert", source, str(tmp_path / "out"), "--image", VIT, "--text", TEXT])
    check(model, tmp_path / "out", VIT, TEXT)


def test_load_into_a_model_of_another_size(tmp_path: Path) -> None:
    model = made()
    save_file(tensors(model), tmp_path / "bare.safetensors")
    larger = Clip(VIT.replace("image=32", "image=48"), TEXT).eval()
    report = weights.load_clip(larger, tmp_path / "bare.safetensors")
    assert report.taken["visual.positional_embedding"].endswith("resized from 4 x 4 to 6 x 6 positions")
    images = torch.randn(2, 3, 48, 48)
    assert_near(larger.encode_image(images), model.encode_image(images))


def test_load_keeps_what_the_model_is(tmp_path: Path) -> None:
    model, other = made(), made()
    save_file(tensors(model), tmp_path / "bare.safetensors")
    weights.load_clip(other, tmp_path / "bare.safetensors")
    ids = texts()
    assert torch.equal(other.encode_text(ids), model.encode_text(ids))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in other.parameters())


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.__delitem__(name)


def with_tensor(name: str, *shape: int) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.__setitem__(name, torch.zeros(shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("visual.ln_post.bias"), "must hold 'visual.ln_post.bias', got 73 other tensors"),
        (without("logit_scale"), "must hold 'logit_scale', got"),
        (without("visual.transformer.resblocks.1.mlp.c_proj.weight"), "must hold 'visual.transformer.res"),
        (
            with_tensor("visual.ln_pre.weight", 33),
            "weights: 'visual.ln_pre.weight' must have shape [32], got [33] from 'visual.ln_pre.weight' of",
        ),
        (
            with_tensor("logit_bias"),
            "must hold the tensors of the model alone, got 1 others: 'logit_bias'",
        ),
        (
            with_tensor("text_decoder.ln.weight", 4),
            "must hold the tensors of the model alone, got 1 others: 'text_decoder.ln.weight'",
        ),
        (
            with_tensor("visual.positional_embedding", 16, 32),
            "weights: 'visual.positional_embedding' must have a square's positions and one, got 16",
        ),
    ],
)
def test_missing_surplus_and_misshapen_tensors(
    change: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path
) -> None:
    state = tensors(made())
    change(state)
    source = write_open_clip(tmp_path / "theirs", state)
    with pytest.raises(ValueError, match=re.escape(message)):
        weights.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    if "square" not in message:
        model = made()
        before = tensors(model)
        with pytest.raises(ValueError, match=re.escape(message)):
            weights.load_clip(model, source)
        torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_missing_and_surplus_tensors_of_hugging_face(tmp_path: Path) -> None:
    source = write_hugging_face(tmp_path / "theirs", tensors(made()))
    state = torch.load(source / "pytorch_model.bin")
    name = "vision_model.encoder.layers.1.self_attn.k_proj.bias"
    torch.save({k: v for k, v in state.items() if k != name}, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"must hold '{re.escape(name)}', got"):
        weights.convert(source, tmp_path / "out")
    torch.save(state | {"vision_model.head.weight": torch.zeros(3)}, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"alone, got 1 others: 'vision_model.head.weight'"):
        weights.convert(source, tmp_path / "out")
    torch.save(state, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match="must have a vision transformer, as Hugging Face's"):
        weights.load_clip(Clip(RESNET, TEXT), source)


def test_a_bare_file_needs_its_descriptions(tmp_path: Path) -> None:
    save_file(tensors(made()), tmp_path / "bare.safetensors")
    source = tmp_path / "bare.safetensors"
    message = (
        f"convert: '{source}' must have 'open_clip_config.json' beside it, which says the heads and the "
        "activation that no tensor shows, or image and text must be given, got neither"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        weights.convert(source, tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"image and text must be given together, got image '.*' and text 'None'"
    ):
        weights.convert(source, tmp_path / "out", image=VIT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_cfg": {"no_ln_pre": True}}, "got 'no_ln_pre': true in vision_cfg"),
        ({"vision_cfg": {"timm_model_name": "vit"}}, "got 'timm_model_name': \"vit\" in vision_cfg"),
        ({"text_cfg": {"hf_model_name": "bert"}}, "got 'hf_model_name': \"bert\" in text_cfg"),
    ],
)
def test_other_architectures_of_open_clip(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = write_open_clip(tmp_path / "theirs", tensors(made()), **changes)
    with pytest.raises(ValueError, match="must describe a CLIP as it was published, " + re.escape(message)):
        weights.convert(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("vision_config", "hidden_act", "gelu_new", "got 'hidden_act': \"gelu_new\""),
        ("text_config", "layer_norm_eps", 1e-6, "got 'layer_norm_eps': 1e-06"),
    ],
)
def test_other_architectures_of_hugging_face(
    part: str, key: str, value: object, message: str, tmp_path: Path
) -> None:
    config = {**HUGGING_FACE_CONFIG, part: {**HUGGING_FACE_CONFIG[part], key: value}}
    source = write_hugging_face(tmp_path / "theirs", tensors(made()), config)
    with pytest.raises(ValueError, match="must describe a CLIP as it was published, " + re.escape(message)):
        weights.convert(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"), [("{", "must be JSON"), ("[]", "must be a JSON object, got")]
)
def test_damaged_configurations(content: str, message: str, tmp_path: Path) -> None:
    source = write_open_clip(tmp_path / "theirs", tensors(made()))
    (source / "open_clip_config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        weights.convert(source, tmp_path / "out")


def test_a_converted_checkpoint_is_a_source(tmp_path: Path) -> None:
    model = made()
    model.save(tmp_path / "ours")
    assert load_file(tmp_path / "ours" / "model.safetensors").keys() == model.state_dict().keys()
    other = made()
    weights.load_clip(other, tmp_path / "ours")
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
