"""CLIP as open_clip and transformers have it, random and small: what the C++ towers must equal."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn


def open_clip_module(name: str) -> ModuleType:
    """``open_clip.<name>`` without the package's own ``__init__``, which needs torchvision and timm.

    Of torchvision the models name one class, of frozen BatchNorm, which none of them here is made with.
    """
    spec = importlib.util.find_spec("open_clip")
    if spec is None:
        pytest.skip("open_clip is not installed (make test installs it)")
    package = ModuleType("open_clip")
    package.__path__ = list(spec.submodule_search_locations or [])
    misc = ModuleType("torchvision.ops.misc")
    misc.FrozenBatchNorm2d = type("FrozenBatchNorm2d", (nn.Module,), {})  # type: ignore[attr-defined]
    stubs: dict[str, Any] = {
        "open_clip": package,
        "torchvision": ModuleType("torchvision"),
        "torchvision.ops": ModuleType("torchvision.ops"),
        "torchvision.ops.misc": misc,
        "timm": None,  # an import of it fails, as open_clip expects of an absent one
        "transformers": None,
    }
    with mock.patch.dict(sys.modules, stubs):
        return importlib.import_module(f"open_clip.{name}")


def open_clip_model(vision: dict[str, Any], text: dict[str, Any] | None = None, **options: Any) -> nn.Module:
    """A random open_clip CLIP of these settings, in evaluation mode."""
    small = {"context_length": 12, "vocab_size": 99, "width": 24, "heads": 3, "layers": 3}
    make = open_clip_module("model").CLIP
    return randomize(make(20, vision, {**small, **(text or {})}, **options)).eval()


def hugging_face_model(
    activation: str = "quick_gelu", image: int = 32, eos_token_id: int = 98, **text: Any
) -> nn.Module:
    """A random transformers CLIPModel, in evaluation mode."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.CLIPConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "patch_size": 8,
            "image_size": image,
            "hidden_act": activation,
        },
        text_config={
            "hidden_size": 24,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "vocab_size": 99,
            "max_position_embeddings": 12,
            "hidden_act": activation,
            "eos_token_id": eos_token_id,
            **text,
        },
        projection_dim=20,
    )
    return randomize(transformers.CLIPModel(config)).eval()


@torch.no_grad()
def randomize(module: nn.Module) -> nn.Module:
    """Fill every tensor so that none is without effect."""
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point() or name == "attn_mask":
            continue
        fan_in = tensor[0].numel() if tensor.dim() > 1 else 16
        tensor.normal_(0, fan_in**-0.5)
        if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            tensor.add_(1).clamp_(0.25)
        if name == "logit_scale":
            tensor.fill_(3.0)
    return module


def texts(rows: int = 5, length: int = 12, vocabulary: int = 99) -> Tensor:
    """Random ids, each text ended by the largest and padded with zeros; the first fills its row."""
    ids = torch.randint(1, vocabulary - 1, (rows, length))
    for row in range(rows):
        end = max(0, length - 1 - 2 * row)
        ids[row, end] = vocabulary - 1
        ids[row, end + 1 :] = 0
    return ids


def assert_near(ours: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    """Of the largest entry, since float32 sums are taken in another order."""
    assert ours.shape == expected.shape
    assert ours.dtype == expected.dtype
    scale = max(1.0, expected.detach().abs().max().item())
    assert (ours - expected).detach().abs().max().item() <= relative * scale
