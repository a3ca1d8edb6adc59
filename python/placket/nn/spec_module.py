"""Modules that own the tensors a C++ model declares."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class TensorSpec(NamedTuple):
    """One tensor of a model: dotted name, shape, how it is filled, and whether it is a buffer.

    ``mean`` is that of the initializer "normal".
    """

    name: str
    shape: tuple[int, ...]
    initializer: str
    scale: float
    buffer: bool
    mean: float = 0.0


class Node(nn.Module):
    """A node of the tree that dotted names make; it has no forward of its own."""


class SpecModule(nn.Module):
    """Nested modules with the names and tensors of a list of specs.

    ``state_dict()`` has the specs' names, in their order.

    Args:
        specs: the tensors, in the order that the model's operator takes them.
        generator: of the initial values; None takes torch's default generator, hence ``torch.manual_seed``.
    """

    def __init__(self, specs: Iterable[TensorSpec], generator: torch.Generator | None = None) -> None:
        super().__init__()
        self._places: list[tuple[nn.Module, str]] = []
        for spec in specs:
            *path, leaf = spec.name.split(".")
            owner: nn.Module = self
            for name in path:
                if name not in owner._modules:
                    owner.add_module(name, Node())
                owner = owner.get_submodule(name)
            tensor = torch.empty(spec.shape)
            if spec.buffer:
                owner.register_buffer(leaf, tensor)
            else:
                owner.register_parameter(leaf, nn.Parameter(tensor))
            initialize(getattr(owner, leaf), spec, generator)
            self._places.append((owner, leaf))

    def tensors(self) -> list[Tensor]:
        """Return the tensors in the order of the specs."""
        return [getattr(owner, leaf) for owner, leaf in self._places]


def initialize(tensor: Tensor, spec: TensorSpec, generator: torch.Generator | None) -> None:
    """Fill a tensor as its spec says; one on the meta device has nothing to fill."""
    if tensor.is_meta:
        return
    match spec.initializer:
        case "zeros":
            nn.init.zeros_(tensor)
        case "ones":
            nn.init.ones_(tensor)
        case "normal":
            nn.init.normal_(tensor, spec.mean, spec.scale, generator=generator)
        case "truncated_normal":
            _truncated_normal(tensor, spec.scale, generator)
        case "kaiming_normal":
            nn.init.kaiming_normal_(tensor, mode="fan_out", nonlinearity="relu", generator=generator)
        case "xavier_uniform":
            nn.init.xavier_uniform_(tensor, generator=generator)
        case "linear":
            bound = 1 / math.sqrt(spec.scale)
            nn.init.uniform_(tensor, -bound, bound, generator=generator)
        case other:
            raise ValueError(f"initialize: initializer must be a known one, got '{other}' for '{spec.name}'")


@torch.no_grad()
def _truncated_normal(tensor: Tensor, scale: float, generator: torch.Generator | None) -> None:
    """Draw again what lies beyond two standard deviations: far faster than torch's inverse error function."""
    flat = tensor.view(-1).normal_(0, scale, generator=generator)
    outside = (flat.abs() > 2 * scale).nonzero().squeeze(1)
    while len(outside) > 0:
        drawn = torch.empty(len(outside), device=flat.device).normal_(0, scale, generator=generator)
        flat[outside] = drawn
        outside = outside[drawn.abs() > 2 * scale]
