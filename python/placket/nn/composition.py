"""Compositions: from the features of an image and of a text to one query."""

from __future__ import annotations

import os
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from placket import _C, checkpoint
from placket.nn.spec_module import SpecModule, TensorSpec


class Composed(NamedTuple):
    """What a composition makes of N images and texts."""

    query: Tensor  #: ``[N, D]``, rows of length 1
    image_share: Tensor  #: ``[N]`` from 0 (all text) to 1 (all image), see ``Composition``; without gradient


class Composition(SpecModule):
    """A composition: image and text ``[N, D]`` to queries ``[N, D]`` for images like the first, but as said.

    Methods, by ``name``:

    - ``agcn`` (``layers=2,heads=8,hidden=2048,dropout=0.1``): AGCN, attention between the tokens of both
      sides and gates. Published is only that (Journal of Donghua University (English Edition) 2024, 41(4)):
      layers, sizes, gates, where training starts and what is done without tokens are our reconstruction.
    - ``tirg``: the gated residual of Vo et al., CVPR 2019.
    - ``combiner`` (``projection=4 D,hidden=2 projection,dropout=0.5``): CLIP4Cir's, Baldrati et al. 2022.
    - ``sum``, ``image``, ``text``: without weights; what the features do by themselves.

    ``image_share`` says how much of a query is image. Each method's query has the direction of an image part
    plus a text part, and the share is ``|image part| / (|image part| + |text part|)``, the text's the rest:

    ========  =============================  ==================================
    method    image part                     text part
    ========  =============================  ==================================
    agcn      ``g v + (1 - l) image``        ``(1 - g) t + l text``
    tirg      gated image                    residual that modifies it
    combiner  ``(1 - l) image``              ``l text`` (its third term, made of both, counts to neither)
    sum       image                          text: 0.5 each, 1 or 0 where the other one is all zeros
    image     image: 1                       none
    text      none                           text: 0
    ========  =============================  ==================================

    Args:
        name: of the method, ``"name[,key=value...]"``.
        dims: D, of the space that both features lie in.
        generator: of the initial values; None takes torch's default generator, hence ``torch.manual_seed``.

    Raises:
        ValueError: unknown name or key, the text lists the known ones; heads do not divide D.
    """

    def __init__(self, name: str, dims: int, generator: torch.Generator | None = None) -> None:
        super().__init__([TensorSpec(*spec) for spec in _C.composition_spec(name, dims)], generator)
        self.name = name
        self.dims = dims

    @property
    def reads_tokens(self) -> bool:
        """Whether ``forward`` reads ``image_tokens`` and ``text_tokens``."""
        return self.name.partition(",")[0] == "agcn"

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        image_tokens: Tensor | None = None,
        text_tokens: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Composed:
        """Return queries.

        Lengths of rows and tokens do not matter: all are brought to a root mean square of 1. Only ``agcn``
        reads the tokens (``reads_tokens``); without them a side is the one row it has.

        Args:
            image, text: ``[N, D]``.
            image_tokens: ``[N, P, D]``, of patches in the same space; the row itself stands before them.
            text_tokens: ``[N, L, D]``, of words; likewise.
            text_mask: ``[N, L]`` bool, true where a token is; by default everywhere.

        Raises:
            ValueError: shapes do not agree, or one row alone in training of ``tirg`` (BatchNorm).
        """
        query, share = torch.ops.placket.compose(
            image, text, image_tokens, text_tokens, text_mask, self.tensors(), self.name, self.training
        )
        return Composed(query, share)

    def config_dict(self) -> dict[str, Any]:
        """Return the content of a checkpoint's ``config.json``."""
        return {"format": checkpoint.FORMAT, "composition": {"name": self.name, "dims": self.dims}}

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write ``model.safetensors`` and ``config.json``, which ``load`` reads."""
        checkpoint.save(directory, self.state_dict(), self.config_dict())

    @classmethod
    def load(cls, directory: str | os.PathLike[str], device: str | torch.device = "cpu") -> Self:
        """Read what ``save`` wrote, in evaluation mode.

        Raises:
            FileNotFoundError, ValueError: the checkpoint is not whole, of another format or not of a
                composition; a tensor is missing, unknown, or of another shape.
        """
        config = checkpoint.read_config(directory)
        made = config.get("composition")
        if not isinstance(made, dict) or made.keys() != {"name", "dims"}:
            raise ValueError(
                f"load: '{directory}' must hold a composition's checkpoint, got the keys {', '.join(config)}"
            )
        with torch.device("meta"):
            model = cls(made["name"], made["dims"])
        checkpoint.fill(model, checkpoint.read_tensors(directory), str(directory))
        return model.eval().to(device)

    def extra_repr(self) -> str:
        return f"'{self.name}', dims={self.dims}"
