"""Models by name, and from disk."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from placket import checkpoint
from placket.nn import Rpf
from placket.schema import AttributeSchema

__all__ = ["create_model", "load"]


def create_model(name: str, *, schema: AttributeSchema, **options: Any) -> Rpf:
    """Make a model with initial weights.

    Example:
        ``create_model("rpf", schema=data.schema, trunk="resnet50", patch="vit_base_patch16_224")``

    Args:
        name: ``"rpf"``.
        schema: the attributes it shall know.
        options: of the model's class; see ``placket.nn.Rpf``.

    Raises:
        ValueError: there is no model of this name.
    """
    if name != "rpf":
        raise ValueError(f"create_model: name must be one of rpf, got '{name}'")
    return Rpf(schema, **options)


def load(
    directory: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    trunk: nn.Module | None = None,
    patch: nn.Module | None = None,
) -> Rpf:
    """Read a model from a checkpoint's folder, in evaluation mode.

    Args:
        directory: what ``model.save`` wrote, or ``last`` or ``best`` of a run.
        device: where the model goes.
        trunk, patch: modules like those it was made with, where these were a caller's own.

    Raises:
        FileNotFoundError, ValueError: the checkpoint is not whole, or of another format; a tensor is missing,
            unknown, or of another shape.
    """
    config = checkpoint.read_config(directory)
    name = config["model"]["name"]
    if name != "rpf":
        raise ValueError(f"load: model in '{directory}' must be one of rpf, got '{name}'")
    with torch.device("meta"):
        model = Rpf.from_config(config, trunk, patch)
    checkpoint.fill(model, checkpoint.read_tensors(directory), str(directory))
    return model.eval().to(device)
