"""Whole models from checkpoints of the methods' reference code: a table of names for each.

A key is a module (or a tensor without one) of ours, ``*`` the number of a transformer block; a value is that
of the reference code, several where ours joins theirs along the first dimension.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from placket.models import as_network, create_model
from placket.nn import AttributeNetwork
from placket.schema import AttributeSchema
from placket.weights.source import Found, Source, WeightReport, give, read
from placket.weights.trunks import trunk_reason

_ASEN = {
    "region.trunk": "embeddingnet.backbonenet",
    "region.head.image_proj": "embeddingnet.conv1",
    "region.head.attention_table": "embeddingnet.mask_fc1",  # linear layers of the one-hot attribute
    "region.head.attention_proj": "embeddingnet.conv2",
    "region.head.gate_table": "embeddingnet.mask_fc2",
    "region.head.gate.fc1": "embeddingnet.fc1",
    "region.head.gate.fc2": "embeddingnet.fc2",
    "region.head.pooled_proj": "embeddingnet.feature_fc",
}
_ASEN_V2 = {
    "attribute_embedding": "embeddingnet.attr_embedding",
    "region.trunk": "embeddingnet.backbonenet",
    "region.head.image_proj": "embeddingnet.conv1",
    "region.head.image_norm": "embeddingnet.img_bn1",
    "region.head.attribute_proj": "embeddingnet.attr_transform1",
    "region.head.gate_proj": "embeddingnet.attr_transform2",
    "region.head.gate.fc1": "embeddingnet.fc1",
    "region.head.gate.fc2": "embeddingnet.fc2",
}
_CSN = {
    "region.trunk": "embeddingnet.embeddingnet",
    "region.head.pooled_proj": "embeddingnet.embed_fc",
    "region.head.masks": "embeddingnet.masks",
}
_ASEN_PLUS_PLUS = {
    "attribute_embedding": "choices.global.attrnet.attr_embedding",
    "region.trunk": "choices.global.basenet",
    "region.head.image_proj": "choices.global.attnnet.conv",
    "region.head.attribute_proj": "choices.global.attnnet.attr_transform1",
    "region.head.gate_proj": "choices.global.attnnet.attr_transform2",
    "region.head.gate.fc1": "choices.global.attnnet.fc1",
    "region.head.gate.fc2": "choices.global.attnnet.fc2",
    "region.head.pooled_proj": "choices.global.attnnet.feature_fc",
    "patch.trunk": "choices.local.basenet",
    "patch.head.image_proj": "choices.local.attnnet.conv",
    "patch.head.attribute_proj": "choices.local.attnnet.attr_transform1",
    "patch.head.gate_proj": "choices.local.attnnet.attr_transform2",
    "patch.head.gate.fc1": "choices.local.attnnet.fc1",
    "patch.head.gate.fc2": "choices.local.attnnet.fc2",
    "patch.head.pooled_proj": "choices.local.attnnet.feature_fc",
}
_RPF: dict[str, str | tuple[str, ...]] = {
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
    "patch.trunk.blocks.*.norm1": "choices.local.basenet.encoder.layer.*.attention_norm",
    "patch.trunk.blocks.*.attn.qkv": (
        "choices.local.basenet.encoder.layer.*.attn.query",
        "choices.local.basenet.encoder.layer.*.attn.key",
        "choices.local.basenet.encoder.layer.*.attn.value",
    ),
    "patch.trunk.blocks.*.attn.proj": "choices.local.basenet.encoder.layer.*.attn.out",
    "patch.trunk.blocks.*.norm2": "choices.local.basenet.encoder.layer.*.ffn_norm",
    "patch.trunk.blocks.*.mlp": "choices.local.basenet.encoder.layer.*.ffn",
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


@dataclass(frozen=True)
class Layout:
    """How a method's reference code names its tensors.

    Attributes:
        mark: a tensor that no other layout has.
        modules: ours to theirs.
        transposed: those of ours whose tensor is the transpose of theirs.
    """

    mark: str
    modules: Mapping[str, str | tuple[str, ...]]
    transposed: tuple[str, ...] = ()


LAYOUTS = {
    "asen": Layout(
        "embeddingnet.mask_fc1.weight", _ASEN, ("region.head.attention_table", "region.head.gate_table")
    ),
    "asen_v2": Layout("embeddingnet.img_bn1.weight", _ASEN_V2),
    "csn": Layout("embeddingnet.masks.weight", _CSN),
    "asen_plus_plus": Layout("choices.global.attnnet.attr_transform2.weight", _ASEN_PLUS_PLUS),
    "rpf": Layout("choices.global.attnnet.x_layer_norm.weight", _RPF),
}


def method_of(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the method whose reference code has such tensors, or None."""
    return next((name for name, layout in LAYOUTS.items() if layout.mark in tensors), None)


def load_reference(model: AttributeNetwork, source: str | os.PathLike[str]) -> WeightReport:
    """Give a model the weights of a checkpoint of its method's reference code.

    Raises:
        FileNotFoundError: the source is not there.
        ValueError: the method has no published reference code; a tensor is missing or of another shape, or
            what the model leaves out changes its embedding. The model is as it was then.
    """
    if model.name not in LAYOUTS:
        raise ValueError(
            f"load_reference: model must be one of {', '.join(LAYOUTS)}, got one of {model.name}"
        )
    return _load(model, Source(str(source), read(source)))


def convert_reference(
    method: str, tensors: Mapping[str, Tensor], source: str, schema: AttributeSchema | None
) -> tuple[AttributeNetwork, WeightReport]:
    """Make a model of the tensors that a method's reference code wrote, and of their sizes.

    Raises:
        ValueError: as ``load_reference``; or ``schema`` has another number of attributes.
    """
    attributes, options = _SIZES[method](Source(source, tensors))
    if schema is None:
        schema = AttributeSchema.of({f"attribute {i}": ["unknown"] for i in range(attributes)})
    elif len(schema) != attributes:
        raise ValueError(
            f"convert: schema must have the checkpoint's {attributes} attributes, got {len(schema)}"
        )
    model = as_network(create_model(method, schema=schema, **options), "convert")
    return model, _load(model, Source(source, tensors))


def _load(model: AttributeNetwork, source: Source) -> WeightReport:
    _check_left(model, source)
    layout = LAYOUTS[model.name]
    found = {name: _find(name, tensor, layout, source) for name, tensor in model.state_dict().items()}
    return give(model, found, source, lambda name: _reason(name, layout, model))


def _find(name: str, target: Tensor, layout: Layout, source: Source) -> Found:
    """Return the source's tensor of a name of ours, in our shape where theirs has the same numbers."""
    block = re.search(r"\.blocks\.(\d+)\.", name)
    number = block[1] if block else ""
    plain = name.replace(f".blocks.{number}.", ".blocks.*.")
    modules = [m for m in layout.modules if plain == m or plain.startswith(m + ".")]
    if not modules:
        raise ValueError(f"weights: model must have the layers of the reference code, got '{name}' too")
    module = max(modules, key=len)
    theirs = layout.modules[module]
    rest = plain.removeprefix(module)
    origins = (theirs,) if isinstance(theirs, str) else theirs
    found = source.get(*(origin.replace("*", number) + rest for origin in origins))
    if module in layout.transposed:
        found.tensor = found.tensor.T
    if _without_ones(found.tensor) == _without_ones(target):  # a 1 x 1 convolution is a linear layer
        found.tensor = found.tensor.reshape(target.shape)
    return found


def _without_ones(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]


def _reason(name: str, layout: Layout, model: AttributeNetwork) -> str:
    """Say why a tensor was left."""
    if name == _LOCAL_TABLE:
        return "the attribute table again, which both branches share"
    for branch in ("region", "patch"):
        prefix = f"{layout.modules.get(f'{branch}.trunk')}."
        if hasattr(model, branch) and name.startswith(prefix):
            return trunk_reason(name.removeprefix(prefix))
    return trunk_reason(name) if name.endswith("num_batches_tracked") else "not part of this model"


_GLOBAL_TABLE = "choices.global.attrnet.attr_embedding.weight"
_LOCAL_TABLE = "choices.local.attrnet.attr_embedding.weight"


def _check_left(model: AttributeNetwork, source: Source) -> None:
    """Refuse what would be left although the source's embedding depends on it."""
    if model.name == "asen_v2" and "embeddingnet.feature_fc.weight" in source:
        raise ValueError(
            f"weights: '{source.name}' must be of ASEN v2 as published since March 2020, which has no "
            "projection, got 'embeddingnet.feature_fc.weight'"
        )
    tables = [source.tensors[name] for name in (_GLOBAL_TABLE, _LOCAL_TABLE) if name in source]
    if len(tables) == 2 and not torch.equal(*tables):
        raise ValueError(
            f"weights: '{source.name}' must hold one attribute table for both branches, got another one in "
            f"'{_LOCAL_TABLE}'"
        )


def _asen_sizes(source: Source) -> tuple[int, dict[str, Any]]:
    width, attributes = source.take("embeddingnet.mask_fc1.weight").shape
    return attributes, {
        "trunk": _resnet("embeddingnet.backbonenet", source),
        "attribute_dim": width,
        "embedding_dim": source.take("embeddingnet.feature_fc.weight").shape[0],
        "hidden_dim": source.take("embeddingnet.fc1.weight").shape[0],
    }


def _asen_v2_sizes(source: Source) -> tuple[int, dict[str, Any]]:
    attributes, width = source.take("embeddingnet.attr_embedding.weight").shape
    return attributes, {
        "trunk": _resnet("embeddingnet.backbonenet", source),
        "attribute_dim": width,
        "hidden_dim": source.take("embeddingnet.fc1.weight").shape[0],
    }


def _csn_sizes(source: Source) -> tuple[int, dict[str, Any]]:
    attributes, width = source.take("embeddingnet.masks.weight").shape
    return attributes, {"trunk": _resnet("embeddingnet.embeddingnet", source), "embedding_dim": width}


def _asen_plus_plus_sizes(source: Source) -> tuple[int, dict[str, Any]]:
    attributes, width = source.take("choices.global.attrnet.attr_embedding.weight").shape
    options: dict[str, Any] = {
        "trunk": _resnet("choices.global.basenet", source),
        "attribute_dim": width,
        "embedding_dim": source.take("choices.global.attnnet.feature_fc.weight").shape[0],
        "attention_dim": source.take("choices.global.attnnet.attr_transform1.weight").shape[0],
        "hidden_dim": source.take("choices.global.attnnet.fc1.weight").shape[0],
        "patch": None,
    }
    if "choices.local.basenet.conv1.weight" in source:
        options["patch"] = _resnet("choices.local.basenet", source)
        local = source.take("choices.local.attnnet.attr_transform1.weight")
        options["patch_attention_dim"] = local.shape[0]
        options["patch_hidden_dim"] = source.take("choices.local.attnnet.fc1.weight").shape[0]
    return attributes, options


def _rpf_sizes(source: Source) -> tuple[int, dict[str, Any]]:
    attributes, width = source.take("choices.global.attrnet.attr_embedding.weight").shape
    options: dict[str, Any] = {
        "trunk": _resnet("choices.global.basenet", source),
        "attribute_dim": width,
        "embedding_dim": source.take("choices.global.attnnet.feature_fc.weight").shape[0],
        "hidden_dim": source.take("choices.global.attnnet.mlp.fc1.weight").shape[0],
        "patch": None,
    }
    encoder = "choices.local.basenet"
    if f"{encoder}.type_embed" in source:
        kernel = source.take(f"{encoder}.embeddings.patch_embeddings.weight")
        positions = source.take(f"{encoder}.embeddings.position_embeddings").shape[1]
        channels, patch = kernel.shape[0], kernel.shape[2]
        image = patch * math.isqrt(positions - 1)
        depth = 0
        while f"{encoder}.encoder.layer.{depth}.ffn.fc1.weight" in source:
            depth += 1
        mlp = source.take(f"{encoder}.encoder.layer.0.ffn.fc1.weight").shape[0]
        options["patch"] = (
            f"vit,width={channels},depth={depth},heads={max(1, channels // 64)},patch={patch},"
            f"image={image},mlp={mlp},dropout=0.1"
        )
        options["patch_size"] = image
    return attributes, options


_SIZES = {
    "asen": _asen_sizes,
    "asen_v2": _asen_v2_sizes,
    "csn": _csn_sizes,
    "asen_plus_plus": _asen_plus_plus_sizes,
    "rpf": _rpf_sizes,
}


def _resnet(prefix: str, source: Source) -> str:
    """Return the description of the ResNet below a prefix."""
    deep = f"{prefix}.layer1.2.conv1.weight" in source
    bottleneck = f"{prefix}.layer1.0.conv3.weight" in source
    trunk = "resnet50" if bottleneck else "resnet34" if deep else "resnet18"
    width = source.take(f"{prefix}.conv1.weight").shape[0]
    return trunk if width == 64 else f"{trunk},width={width / 64}"
