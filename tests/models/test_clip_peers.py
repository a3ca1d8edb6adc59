"""CLIP equals open_clip and transformers, through the converter of their weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from clip_peers import assert_near, hugging_face_model, open_clip_model, open_clip_module, texts
from safetensors.torch import save_file
from torch import Tensor, nn

from placket import weights
from placket.nn import Clip

VIT = {"layers": 2, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 32}
RESNET = {"layers": [1, 2, 1, 1], "width": 8, "head_width": 64, "image_size": 64}


def from_hugging_face(model: nn.Module, folder: Path) -> Clip:
    model.save_pretrained(folder / "theirs")  # type: ignore[operator]
    weights.convert(folder / "theirs", folder / "ours")
    return Clip.load(folder / "ours")


def from_open_clip(model: nn.Module, folder: Path, vision: dict[str, Any], **options: Any) -> Clip:
    """Through a folder as open_clip's push to the Hugging Face hub makes it."""
    (folder / "theirs").mkdir()
    save_file(model.state_dict(), folder / "theirs" / "open_clip_model.safetensors")
    text = {"context_length": 12, "vocab_size": 99, "width": 24, "heads": 3, "layers": 3}
    config = {"model_cfg": {"embed_dim": 20, "vision_cfg": vision, "text_cfg": text, **options}}
    (folder / "theirs" / "open_clip_config.json").write_text(json.dumps(config))
    weights.convert(folder / "theirs", folder / "ours")
    return Clip.load(folder / "ours")


def resized_positions(positions: Tensor, height: int, width: int) -> Tensor:
    """As open_clip resizes them at loading."""
    side = round((len(positions) - 1) ** 0.5)
    grid = positions[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:1], grid.permute(0, 2, 3, 1).reshape(height * width, -1)])


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("image", [32, 48])
@pytest.mark.parametrize("batch", [1, 4])
def test_equals_transformers(activation: str, image: int, batch: int, tmp_path: Path) -> None:
    theirs = hugging_face_model(activation, image)
    ours = from_hugging_face(theirs, tmp_path)
    images, ids = torch.randn(batch, 3, image, image), texts(batch)
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=images)
        vision = theirs.visual_projection(theirs.vision_model(images).pooler_output)
        text = theirs.text_projection(theirs.text_model(ids).pooler_output)
        assert_near(ours.encode_image(images), vision)
        assert_near(ours.encode_text(ids), text)
        out = ours(images, ids)
    assert_near(out.image, expected.image_embeds)
    assert_near(out.text, expected.text_embeds)
    assert_near(out.scale * out.image @ out.text.T, expected.logits_per_image)


@pytest.mark.parametrize("eos", [2, 7, 98])
def test_text_ends_as_in_transformers(eos: int, tmp_path: Path) -> None:
    theirs = hugging_face_model(eos_token_id=eos)
    ours = from_hugging_face(theirs, tmp_path)
    ids = texts()
    ids[ids == 7] = 8
    if eos == 7:
        ids[0, 3], ids[1, 5], ids[1, 6] = 7, 7, 7  # once, twice, and in the others never
    with torch.no_grad():
        out = theirs.text_model(ids)
        output, end = ours.text_tokens(ids)
        assert_near(output.embedding, theirs.text_projection(out.pooler_output))
        assert_near(output.tokens, theirs.text_projection(out.last_hidden_state))
    expected = ids.argmax(1) if eos != 7 else torch.tensor([3, 5, 0, 0, 0])
    assert torch.equal(end, expected)


def test_image_tokens_equal_transformers(tmp_path: Path) -> None:
    theirs = hugging_face_model()
    ours = from_hugging_face(theirs, tmp_path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        hidden = theirs.vision_model(images).last_hidden_state
        expected = theirs.visual_projection(theirs.vision_model.post_layernorm(hidden))
        out = ours.image_tokens(images)
    assert_near(out.tokens, expected)
    assert_near(out.embedding, expected[:, 0])


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize(
    "vision", [VIT, VIT | {"image_size": 48, "mlp_ratio": 2.0}, RESNET], ids=["vit", "vit48", "resnet"]
)
def test_equals_open_clip(vision: dict[str, Any], quick_gelu: bool, tmp_path: Path) -> None:
    theirs = open_clip_model(vision, quick_gelu=quick_gelu)
    ours = from_open_clip(theirs, tmp_path, vision, quick_gelu=quick_gelu)
    size = vision["image_size"]
    images, ids = torch.randn(3, 3, size, size), texts()
    with torch.no_grad():
        assert_near(ours.encode_image(images), theirs.encode_image(images))
        assert_near(ours.encode_text(ids), theirs.encode_text(ids))
        one = torch.randn(1, 3, size, size)
        assert_near(ours.encode_image(one, normalize=True), theirs.encode_image(one, normalize=True))
    assert ours.logit_scale.item() == 3.0


@pytest.mark.parametrize("size", [(48, 48), (24, 64), (16, 16)])
def test_vit_of_another_size_equals_open_clip(size: tuple[int, int], tmp_path: Path) -> None:
    theirs = open_clip_model(VIT)
    ours = from_open_clip(theirs, tmp_path, VIT)
    other = open_clip_model(VIT | {"image_size": size})
    state = theirs.state_dict()
    if size[0] == size[1]:
        open_clip_module("model").resize_pos_embed(state, other)
    else:
        name = "visual.positional_embedding"
        state[name] = resized_positions(state[name], size[0] // 8, size[1] // 8)
    other.load_state_dict(state)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert_near(ours.encode_image(images), other.encode_image(images))


@pytest.mark.parametrize("size", [(96, 96), (64, 128), (80, 50), (32, 32)])
def test_resnet_of_another_size_equals_open_clip(size: tuple[int, int], tmp_path: Path) -> None:
    theirs = open_clip_model(RESNET)
    ours = from_open_clip(theirs, tmp_path, RESNET)
    images = torch.randn(2, 3, *size)
    pool = theirs.visual.attnpool
    positions = resized_positions(pool.positional_embedding.detach(), size[0] // 32, size[1] // 32)
    pool.positional_embedding = nn.Parameter(positions)
    with torch.no_grad():
        assert_near(ours.encode_image(images), theirs.encode_image(images))


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_training_equals_open_clip(vision: dict[str, Any], tmp_path: Path) -> None:
    # In float64: statistics of few values magnify float32's roundings from layer to layer.
    theirs = open_clip_model(vision, quick_gelu=True)
    ours = from_open_clip(theirs, tmp_path, vision, quick_gelu=True).double().train()
    theirs = theirs.double().train()
    size = vision["image_size"]
    images, ids = torch.randn(4, 3, size, size, dtype=torch.double), texts(4)
    pictures = [images.clone().requires_grad_() for _ in range(2)]
    out = ours(pictures[0], ids)
    image, text, scale = theirs(pictures[1], ids)
    labels = torch.arange(4)
    F.cross_entropy(out.scale * out.image @ out.text.T, labels).backward()
    F.cross_entropy(scale * image @ text.T, labels).backward()
    assert_near(pictures[0].grad, pictures[1].grad, 1e-9)
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert_near(parameter.grad, expected[name].grad, 1e-9)
    state = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        if "running" in name:
            assert_near(tensor, state[name], 1e-9)


def test_resnet_tokens_attend_to_one_position(tmp_path: Path) -> None:
    """Open_clip's pooling of one position alone, its own query, gives that position's token."""
    theirs = open_clip_model(RESNET)
    ours = from_open_clip(theirs, tmp_path, RESNET)
    images = torch.randn(2, 3, 64, 96)
    visual = theirs.visual
    with torch.no_grad():
        out = ours.image_tokens(images)
        assert_near(out.embedding, ours.encode_image(images))
        assert torch.equal(out.tokens[:, 0], out.embedding)
        x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))
        positions = resized_positions(visual.attnpool.positional_embedding.detach(), 2, 3)[1:]
        tokens = x.flatten(2).transpose(1, 2) + positions
        alone = copy.deepcopy(visual.attnpool)
        alone.positional_embedding = nn.Parameter(torch.zeros(2, tokens.shape[2]))
        # A map of one position has that position as its mean; two equal tokens share the attention.
        expected = alone(tokens.reshape(-1, tokens.shape[2], 1, 1)).view(2, 6, 20)
    assert_near(out.tokens[:, 1:], expected)
