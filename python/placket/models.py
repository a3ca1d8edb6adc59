"""Models by name, and from disk."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from placket import checkpoint
from placket.nn import (
    Asen,
    AsenPlusPlus,
    AsenV2,
    AttributeNetwork,
    Clip,
    Csn,
    M3Net,
    MmflNet,
    Modc,
    Model,
    RafClip,
    Rpf,
    TripletNetwork,
)
from placket.schema import AttributeSchema

__all__ = ["METHODS", "as_network", "create_model", "load", "takes_patch"]

METHODS: dict[str, type[Model]] = {
    method.name: method
    for method in (Asen, AsenV2, AsenPlusPlus, Csn, M3Net, MmflNet, Modc, RafClip, Rpf, TripletNetwork)
}


def create_model(name: str, *, schema: AttributeSchema, **options: Any) -> Model:
    """Make a model with initial weights. (A plain CLIP knows no attributes, and is made by its own class,
    ``placket.nn.Clip``.)

    Example:
        ``create_model("rpf", schema=data.schema, trunk="resnet50", patch="vit_base_patch16_224")``

    Args:
        name: of the method, one of ``METHODS``.
        schema: the attributes it shall know.
        options: of the method's class, ``METHODS[name]``.

    Raises:
        ValueError: there is no method of this name, or it has no such option.
    """
    method = _method("create_model: name", name)
    known = [key for key in inspect.signature(method).parameters if key != "schema"]
    for key in options:
        if key not in known:
            raise ValueError(f"create_model: options of {name} must be among {', '.join(known)}, got '{key}'")
    make: Callable[..., Model] = method
    return make(schema, **options)


def takes_patch(name: str) -> bool:
    """Whether the method has a patch branch.

    Raises:
        ValueError: there is no method of this name.
    """
    return "patch" in inspect.signature(_method("model: name", name)).parameters


def load(
    directory: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    trunk: nn.Module | None = None,
    patch: nn.Module | None = None,
) -> Model:
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
    if config["model"]["name"] == Clip.name:
        raise ValueError(
            f"load: model in '{directory}' must be one of {', '.join(METHODS)}, got 'clip', which "
            "placket.nn.Clip.load reads"
        )
    method = _method(f"load: model in '{directory}'", config["model"]["name"])
    with torch.device("meta"):
        if issubclass(method, AttributeNetwork):
            model: Model = method.from_config(config, trunk, patch)
        elif trunk is None and patch is None:
            model = method.from_config(config)
        else:
            raise ValueError(f"load: trunk and patch must be left out for a {method.name}")
    checkpoint.fill(model, checkpoint.read_tensors(directory), str(directory))
    return model.eval().to(device)


def as_network(model: Model, user: str) -> AttributeNetwork:
    """Return a model as what it is, a network of attribute-specific retrieval.

    Raises:
        ValueError: it is none; ``user`` opens the sentence.
    """
    if not isinstance(model, AttributeNetwork):
        raise ValueError(f"{user}: model must have a trunk and a head for attributes, got {model.name}")
    return model


def _method(what: str, name: str) -> type[Model]:
    if name not in METHODS:
        raise ValueError(f"{what} must be one of {', '.join(METHODS)}, got '{name}'")
    return METHODS[name]
