"""What training, evaluation and the index ask of a model."""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from placket import _C, checkpoint, ops
from placket.config import LossConfig
from placket.schema import AttributeSchema, index_of, weights_of

Views = Literal["crop", "segmented", "both"]
ExtraLoss = Callable[[Tensor, Tensor], Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class Learning:
    """What a model's C++ side is told of a training.

    Attributes:
        loss, seed, extra_losses: see ``placket.Trainer``.
        products: how many there are, for a model that ``learns_products``.
        domains: 2 where their photographs are shops' and consumers', otherwise 1.
    """

    loss: LossConfig = field(default_factory=LossConfig)
    seed: int = 0
    extra_losses: Mapping[str, ExtraLoss] = field(default_factory=dict)
    products: int = 0
    domains: int = 1

    def no_extra_losses(self, model: str) -> None:
        """Raise ValueError where there are extra losses, which a model does not take."""
        if self.extra_losses:
            raise ValueError(
                f"Trainer: extra_losses must be none for {model}, got {', '.join(self.extra_losses)}"
            )


class Pictures(NamedTuple):
    """The images at full resolution, from which the patch branch cuts its crops."""

    pixels: Tensor  #: uint8, the images' ``[h, w, 3]`` bytes one after another
    offsets: Tensor  #: ``[B]`` int64, first byte of each
    sizes: Tensor  #: ``[B, 2]`` int64, height and width

    @staticmethod
    def of(batch: _C.Batch, device: torch.device) -> Pictures:
        """Return the pictures that a batch was loaded with (``keep_pixels``), on a device."""
        return Pictures(batch.pixels.to(device), batch.offsets.to(device), batch.sizes.to(device))


class Attended(NamedTuple):
    """Where in images a model sees attributes."""

    embedding: Tensor  #: ``[B, K, D]``, L2-normalised
    attention: Tensor  #: ``[B, K, h, w]`` float32, of the input's positions; each map sums to 1


class Model(nn.Module, ABC):
    """Base of every model that embeds images: in a space for each attribute, or in spaces of its own.

    A space has a name and a number, its place among ``spaces``; every call takes either.

    Attributes:
        schema: the attributes it knows.
        preprocess: from decoded image to input, as ``placket.data.Preprocess`` takes it.
    """

    name: ClassVar[str]
    schema: AttributeSchema
    preprocess: dict[str, Any]
    views: Views = "crop"
    """What of a region is embedded: see ``placket.data.Loader``."""

    #: Whether it represents images by each class (attribute value) too.
    has_classes: bool = False

    learns_products: ClassVar[bool] = False
    """Whether it is trained by the products that images show."""

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
        """Dimensions of its spaces, by name: those of the attributes in the schema's order, then others.

        A model of products has no space of an attribute.
        """
        return dict.fromkeys(self.schema.names, self.embedding_dim)

    @property
    def default_spaces(self) -> tuple[str, ...]:
        """Names of the spaces meant where none is named: the attributes', or all where it has no such."""
        own = tuple(name for name in self.spaces if name in self.schema.names)
        return own or tuple(self.spaces)

    def space_numbers(self, spaces: Iterable[str | int] | None = None) -> list[int]:
        """Return the numbers of spaces given by name or number, ``default_spaces`` by default.

        Raises:
            ValueError: there is no such space; the text names the closest.
        """
        names = tuple(self.spaces)
        given = self.default_spaces if spaces is None else spaces
        return [index_of(f"{self.name}: space", names, space) for space in given]

    def space_weights(
        self, spaces: Mapping[str, float] | Iterable[str | int] | None = None
    ) -> dict[str, float]:
        """Return the weights of spaces by name: those given, 1 where none is; ``default_spaces`` by default.

        Raises:
            ValueError: there is no such space; the text names the closest.
        """
        given = self.default_spaces if spaces is None else spaces
        return weights_of(f"{self.name}: space", tuple(self.spaces), given)

    @property
    def predicts(self) -> bool:
        """Whether it estimates the values of attributes (``class_probabilities``)."""
        return False

    @property
    def predicts_by_embedding(self) -> bool:
        """Whether it estimates them from embeddings alone (``probabilities_of``)."""
        return False

    def probabilities_of(self, embeddings: Tensor, attribute: str | int) -> Tensor:
        """Estimate the value of an attribute from embeddings under it.

        Args:
            embeddings: ``[n, D]``.
            attribute: name or id.

        Returns:
            ``[n, values]``; 0 for a value that the model never saw, and 0 for all where it saw none.

        Raises:
            ValueError: the model has no such estimate.
        """
        raise ValueError(f"{self.name}: model must predict by embeddings, got one that does not")

    @property
    def attends(self) -> bool:
        """Whether it says where in an image it sees each attribute (``attend``)."""
        return False

    @property
    def box_threshold(self) -> float:
        """Share of an attention map's range above which a position counts as region."""
        raise ValueError(f"{self.name}: model must attend to positions, got one that does not")

    def attend(
        self, images: Tensor, attributes: Sequence[str | int], pictures: Pictures | None = None
    ) -> Attended:
        """Embed images under K attributes and say where it sees them, where it ``attends``.

        Args:
            images: ``[B, 3, H, W]``, normalised.
            attributes: names or ids of the schema.
            pictures: as for ``encode``.

        Raises:
            ValueError: it does not attend.
        """
        raise ValueError(f"attend: model must attend to positions, got {self.name}")

    def region_boxes(self, attention: Tensor, sizes: Tensor) -> Tensor:
        """Return the boxes that attention maps point at, which a patch branch looks at.

        Args:
            attention: ``[N, h, w]`` float32.
            sizes: ``[N, 2]`` int64, height and width of the pictures that the inputs were made from.

        Returns:
            ``[N, 4]`` int64, x0 y0 x1 y1 in pixels of the picture; see ``placket.ops.region_box``.
        """
        squashed = self.preprocess["fit"] == "squash"
        return ops.region_box(attention, sizes, self.box_threshold, squashed=squashed)

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
        """Return the embeddings ``[B, A, D]`` of images in all ``default_spaces``; the trunk runs once."""
        return self.encode(images, self.space_numbers(), pictures)

    def class_probabilities(
        self, images: Tensor, attributes: Sequence[str | int], pictures: Pictures | None = None
    ) -> list[Tensor]:
        """Estimate the values of attributes, where it ``predicts``.

        Args:
            images: ``[B, 3, H, W]``, normalised.
            attributes: names or ids of the schema.
            pictures: as for ``encode``.

        Returns:
            for each attribute ``[B, values]``, sums of 1; 0 for all values where nothing can be said.

        Raises:
            ValueError: it does not predict.
        """
        raise ValueError(f"class_probabilities: model must predict attributes, got {self.name}")

    @abstractmethod
    def system(self, learning: Learning | None = None) -> _C.System:
        """Return the C++ side, which trains it and embeds with it; it holds the model's own tensors.

        Args:
            learning: of a training; None to embed alone.
        """

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


def full_preprocess(
    mean: Sequence[float], std: Sequence[float], given: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return how a model with a trunk takes images, with its defaults for what is not given."""
    return {
        "size": 224,
        "fit": "crop",
        "target_ratio": 1.25,
        "interpolation": "bilinear",
        "arithmetic": "pillow",
        "orientation": "apply",
        "box_margin": 0.0,
        "mean": list(mean),
        "std": list(std),
        **(given or {}),
    }


def take_options(options: T, loss: LossConfig) -> T:
    """Give a system's options those constants of the losses that it knows."""
    for key, value in dataclasses.asdict(loss).items():
        if hasattr(options, key):
            setattr(options, key, value)
    return options
