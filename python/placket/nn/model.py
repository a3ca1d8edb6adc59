"""What training, evaluation and the index ask of a model."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from placket import _C, checkpoint
from placket.config import LossConfig
from placket.schema import AttributeSchema

ExtraLoss = Callable[[Tensor, Tensor], Tensor]


class Pictures(NamedTuple):
    """The images at full resolution, from which the patch branch cuts its crops."""

    pixels: Tensor  #: uint8, the images' ``[h, w, 3]`` bytes one after another
    offsets: Tensor  #: ``[B]`` int64, first byte of each
    sizes: Tensor  #: ``[B, 2]`` int64, height and width

    @staticmethod
    def of(batch: _C.Batch, device: torch.device) -> Pictures:
        """Return the pictures that a batch was loaded with (``keep_pixels``), on a device."""
        return Pictures(batch.pixels.to(device), batch.offsets.to(device), batch.sizes.to(device))


class Model(nn.Module, ABC):
    """Base of every model that embeds images under attributes.

    Attributes:
        schema: the attributes it knows.
        preprocess: from decoded image to input, as ``placket.data.Preprocess`` takes it.
    """

    name: ClassVar[str]
    schema: AttributeSchema
    preprocess: dict[str, Any]
    views: str = "crop"
    """What of a region is embedded: see ``placket.data.Loader``."""

    #: Whether it represents images by each class (attribute value) too.
    has_classes: bool = False

    @property
    @abstractmethod
    def embedding_dim(self) -> int:
        """D, the width of the embeddings."""

    @property
    @abstractmethod
    def branches(self) -> tuple[str, ...]:
        """Names of the parts that embed together, as a stage's ``branches`` names them."""

    @property
    def spaces(self) -> dict[str, int]:
        """Dimensions of the spaces of an index of this model, by name: the attributes, then others."""
        return dict.fromkeys(self.schema.names, self.embedding_dim)

    @property
    def needs_pictures(self) -> bool:
        """Whether embedding takes the images at full resolution beside the inputs."""
        return False

    @property
    def blocks(self) -> int:
        """How many equal parts the embedding joins, one of each branch for example."""
        return 1

    @property
    def is_native(self) -> bool:
        """Whether the C++ core can run all of it."""
        return True

    @abstractmethod
    def encode(
        self, images: Tensor, attributes: Sequence[str | int], pictures: Pictures | None = None
    ) -> Tensor:
        """Return the embeddings ``[B, K, D]``, L2-normalised, of images in each of K spaces.

        Args:
            images: ``[B, 3, H, W]``, normalised.
            attributes: names or numbers of ``spaces``.
            pictures: where it ``needs_pictures``.
        """

    def encode_all(self, images: Tensor, pictures: Pictures | None = None) -> Tensor:
        """Return the embeddings ``[B, A, D]`` of every image under every attribute; the trunk runs once."""
        return self.encode(images, range(len(self.schema)), pictures)

    @abstractmethod
    def system(
        self, loss: LossConfig, seed: int = 0, extra_losses: Mapping[str, ExtraLoss] | None = None
    ) -> _C.System:
        """Return the C++ side, which trains it and embeds with it; it holds the model's own tensors."""

    @abstractmethod
    def config_dict(self, preprocess: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the content of a checkpoint's ``config.json``.

        Args:
            preprocess: what goes there instead of ``model.preprocess``.
        """

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Make the model that ``config_dict`` describes."""

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write ``model.safetensors`` and ``config.json``, which ``placket.load`` reads."""
        checkpoint.save(directory, self.state_dict(), self.config_dict())
