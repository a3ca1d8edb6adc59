"""CLIP from OpenAI, open_clip and Hugging Face, which give the same tensors two sets of names."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from placket.nn import Clip, Trunk
from placket.weights.source import Found, Source, WeightReport, give, read
from placket.weights.trunks import load_trunk, resize_positions

#: Ours, which are OpenAI's and open_clip's, to Hugging Face's; blocks are apart.
_HUGGING_FACE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_HUGGING_FACE_BLOCK = {
    "ln_1": ("layer_norm1",),
    "attn.in_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.out_proj": ("self_attn.out_proj",),
    "ln_2": ("layer_norm2",),
    "mlp.c_fc": ("mlp.fc1",),
    "mlp.c_proj": ("mlp.fc2",),
}
_TRANSPOSED = ("visual.proj", "text_projection")  # of linear layers in Hugging Face's

_LEFT = {
    r"(text|vision)_model\.embeddings\.position_ids": "0, 1, 2, ..., which is counted here",
    r"input_resolution|context_length|vocab_size": "a number that the tensors' shapes say too",
    r"visual\..*\.num_batches_tracked": "a counter that nothing here needs",
}
_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)


@dataclass
class Unseen:
    """What no tensor's shape tells: heads, activation (quick_gelu or gelu) and where a text ends."""

    image_heads: int
    text_heads: int
    image_activation: str
    text_activation: str
    pool: str = "pool=argmax"


def is_clip(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a CLIP, by either set of names."""
    return "text_projection" in tensors or _is_hugging_face(tensors)


def clip_file(source: str | os.PathLike[str]) -> Path:
    """Return the file of weights in a folder as the Hugging Face hub has it; a file is its own."""
    path = Path(source)
    found = (path / name for name in _FILES if (path / name).is_file())
    return next(found, path) if path.is_dir() else path


def load_clip(model: Clip, source: str | os.PathLike[str]) -> WeightReport:
    """Give a CLIP the weights of a source; its image positions are resampled to the model's grid.

    Args:
        model: of the source's sizes, heads and activation (which ``convert`` finds out).
        source: a file of OpenAI's (also the TorchScript archive), open_clip's or Hugging Face's tensors, or
            the folder it is in.

    Raises:
        FileNotFoundError: the source is not there.
        ValueError: a tensor is missing, of another shape, or none of the model's; the model is as it was.
    """
    path = clip_file(source)
    return _load(model, Source(str(path), read(path)))


def load_towers(model: Clip, source: str | os.PathLike[str]) -> WeightReport:
    """Give towers the weights they start from.

    Args:
        model: of this package's, also one with tensors of its own beside the towers'.
        source: where the image tower is CLIP's, of both towers, as ``load_clip`` takes it; where it is a
            trunk, of the trunk alone, as ``load_trunk`` does.

    Raises:
        FileNotFoundError, ValueError: as those; the model is as it was.
    """
    if hasattr(model.visual, "trunk"):
        settings = (part for part in model.image.split(",") if not part.startswith("embedding_dim="))
        trunk = Trunk(",".join(settings))
        report = load_trunk(trunk, source)
        found = {f"visual.trunk.{name}": tensor for name, tensor in trunk.state_dict().items()}
    else:
        plain = Clip(model.image, model.text)
        report = load_clip(plain, source)
        found = plain.state_dict()
    model.load_state_dict({**model.state_dict(), **found})
    return report


def convert_clip(
    tensors: Mapping[str, Tensor], path: Path, image: str | None, text: str | None
) -> tuple[Clip, WeightReport]:
    """Make a model of a source's tensors, with sizes from their shapes.

    Heads, activation and the end of a text come from ``open_clip_config.json`` (open_clip) or ``config.json``
    (Hugging Face) beside the file, or are OpenAI's where the file is OpenAI's; ``image`` and ``text``, both
    given, say all of it instead.

    Raises:
        ValueError: as ``load_clip``; or nothing says the heads and the activation; or the configuration is of
            another architecture.
    """
    source = Source(str(path), tensors)
    if (image is None) != (text is None):
        raise ValueError(
            f"convert: image and text must be given together, got image '{image}' and text '{text}'"
        )
    if image is None or text is None:
        image, text = _describe(source, path)
    model = Clip(image, text, preprocess=_preprocess(path, source))
    return model, _load(model, source)


def _is_hugging_face(tensors: Mapping[str, Tensor]) -> bool:
    return _HUGGING_FACE["token_embedding.weight"] in tensors


def _load(model: Clip, source: Source) -> WeightReport:
    state = model.state_dict()
    found = {name: _find(name, source) for name in state}
    surplus = [name for name in source.rest() if _reason(name) is None]
    if surplus:
        listed = ", ".join(f"'{name}'" for name in surplus[:5])
        raise ValueError(
            f"weights: '{source.name}' must hold the tensors of the model alone, got {len(surplus)} others: "
            f"{listed}"
        )
    for name in ("visual.positional_embedding", "visual.attnpool.positional_embedding"):
        if name in state:
            resize_positions(found[name], state[name])
    return give(model, found, source, lambda name: str(_reason(name)))


def _reason(name: str) -> str | None:
    """Say why a tensor that no CLIP of ours has may be left; None: it may not."""
    return next((reason for pattern, reason in _LEFT.items() if re.fullmatch(pattern, name)), None)


def _find(name: str, source: Source) -> Found:
    """Return the source's tensor of a name of ours."""
    found = source.get(*_names(name, source))
    if name in _TRANSPOSED and _is_hugging_face(source.tensors):
        found.tensor = found.tensor.T
    return found


def _names(name: str, source: Source) -> tuple[str, ...]:
    """Return the source's name of a tensor of ours, several where ours joins theirs."""
    if not _is_hugging_face(source.tensors):
        return (name,)
    block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)", name)
    if block is not None:
        tower, number, layer, leaf = block.groups()
        prefix = f"{'vision' if tower else 'text'}_model.encoder.layers.{number}"
        return tuple(f"{prefix}.{part}.{leaf}" for part in _HUGGING_FACE_BLOCK[layer])
    if name not in _HUGGING_FACE:
        raise ValueError(
            f"weights: model must have a vision transformer, as Hugging Face's '{source.name}' has, got "
            f"'{name}'"
        )
    return (_HUGGING_FACE[name],)


def _describe(source: Source, path: Path) -> tuple[str, str]:
    """Return the descriptions of the image and of the text tower."""

    def shape(name: str) -> tuple[int, ...]:
        return tuple(_find(name, source).tensor.shape)

    def count(tensor: str) -> int:
        """How many blocks have this tensor, whose name has their number at ``*``."""
        number = 0
        while _names(tensor.replace("*", str(number)), source)[0] in source:
            number += 1
        return number

    vocabulary, text_width = shape("token_embedding.weight")
    context, embedding_dim = shape("positional_embedding")[0], shape("text_projection")[1]
    convolutional = "visual.layer1.0.conv1.weight" in source
    width = shape("visual.layer1.0.conv1.weight" if convolutional else "visual.conv1.weight")[0]
    unseen = _unseen(source, path, 32 * width if convolutional else width, text_width)

    if convolutional:
        layers = "/".join(str(count(f"visual.layer{i}.*.conv1.weight")) for i in range(1, 5))
        side = _side("visual.attnpool.positional_embedding", shape)
        image = (
            f"clip_resnet,layers={layers},width={width},heads={unseen.image_heads},image={32 * side},"
            f"embedding_dim={embedding_dim}"
        )
    else:
        patch = shape("visual.conv1.weight")[2]
        side = _side("visual.positional_embedding", shape)
        image = (
            f"clip_vit,width={width},depth={count('visual.transformer.resblocks.*.ln_1.weight')},"
            f"heads={unseen.image_heads},mlp={shape('visual.transformer.resblocks.0.mlp.c_fc.weight')[0]},"
            f"patch={patch},image={patch * side},embedding_dim={embedding_dim},"
            f"activation={unseen.image_activation}"
        )
    text = (
        f"clip_text,width={text_width},depth={count('transformer.resblocks.*.ln_1.weight')},"
        f"heads={unseen.text_heads},mlp={shape('transformer.resblocks.0.mlp.c_fc.weight')[0]},"
        f"context={context},vocabulary={vocabulary},embedding_dim={embedding_dim},"
        f"activation={unseen.text_activation},{unseen.pool}"
    )
    return image, text


def _side(name: str, shape: Callable[[str], tuple[int, ...]]) -> int:
    positions = shape(name)[0]
    side = math.isqrt(positions - 1)
    if side * side != positions - 1:
        raise ValueError(f"weights: '{name}' must have a square's positions and one, got {positions}")
    return side


def _unseen(source: Source, path: Path, channels: int, text_width: int) -> Unseen:
    """Return what no shape tells; ``channels`` are those the image tower's heads share."""
    if "input_resolution" in source:  # as OpenAI's own files alone have it
        return Unseen(channels // 64, text_width // 64, "quick_gelu", "quick_gelu")
    beside = path.parent / ("config.json" if _is_hugging_face(source.tensors) else "open_clip_config.json")
    if not beside.is_file():
        raise ValueError(
            f"convert: '{path}' must have '{beside.name}' beside it, which says the heads and the activation "
            "that no tensor shows, or image and text must be given, got neither"
        )
    config = _json(beside)
    try:
        return _hugging_face(config) if "vision_config" in config else _open_clip(config, channels)
    except _Unknown as error:
        raise ValueError(
            f"convert: '{beside}' must describe a CLIP as it was published, got {error}"
        ) from None


class _Unknown(Exception):
    """A setting that no tower of ours has."""


def _open_clip(config: Mapping[str, Any], channels: int) -> Unseen:
    model = config.get("model_cfg", config)
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    plain = {
        "vision_cfg": ("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"),
        "text_cfg": ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"),
    }
    for part, settings in (("vision_cfg", vision), ("text_cfg", text)):
        for key, value in settings.items():
            if key not in plain[part]:
                raise _Unknown(f"'{key}': {json.dumps(value)} in {part}")
    activation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    heads = channels // vision.get("head_width", 64)
    return Unseen(heads, text.get("heads", 8), activation, activation)


def _hugging_face(config: Mapping[str, Any]) -> Unseen:
    # Keys that a configuration leaves out have the defaults of transformers' CLIPVisionConfig and
    # CLIPTextConfig.
    vision, text = config["vision_config"], config.get("text_config", {})
    for settings in (vision, text):
        eps = settings.get("layer_norm_eps", 1e-5)
        if eps != 1e-5:
            raise _Unknown(f"'layer_norm_eps': {eps}")
        activation = settings.get("hidden_act", "quick_gelu")
        if activation not in ("quick_gelu", "gelu"):
            raise _Unknown(f"'hidden_act': {json.dumps(activation)}")
    # 2 is what the first configurations had by mistake; transformers then takes the largest id.
    eos = text.get("eos_token_id", 49407)
    return Unseen(
        vision.get("num_attention_heads", 12),
        text.get("num_attention_heads", 8),
        vision.get("hidden_act", "quick_gelu"),
        text.get("hidden_act", "quick_gelu"),
        "pool=argmax" if eos == 2 else f"pool=eos,eos_id={eos}",
    )


def _preprocess(path: Path, source: Source) -> dict[str, Any]:
    """Return mean and standard deviation of a source that says them."""
    if _is_hugging_face(source.tensors):
        beside, keys = path.parent / "preprocessor_config.json", ("image_mean", "image_std")
        said = _json(beside) if beside.is_file() else {}
    else:
        beside, keys = path.parent / "open_clip_config.json", ("mean", "std")
        said = _json(beside).get("preprocess_cfg", {}) if beside.is_file() else {}
    return {ours: list(said[key]) for ours, key in zip(("mean", "std"), keys, strict=True) if key in said}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"convert: '{path}' must be JSON, got an error at {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"convert: '{path}' must be a JSON object, got {type(content).__name__}")
    return content
