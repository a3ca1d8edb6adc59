"""A model of products in plain Python: one space, and predictions of some of its attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from small_training import COLOURS, PLACES
from torch import Tensor, nn

from placket import checkpoint
from placket.data import Preprocess
from placket.nn import Learning, Model, Pictures
from placket.schema import AttributeSchema

SCHEMA = AttributeSchema.of({"colour": COLOURS, "place": PLACES, "fit": ("slim", "wide")})


class Products(Model):
    """Embeds by a coarse picture in fixed random directions; predicts colour and place, not fit."""

    name = "products"

    def __init__(self, **preprocess: Any) -> None:
        super().__init__()
        self.schema = SCHEMA
        settings = Preprocess(**{"size": 48, **preprocess})
        names = ("size", "fit", "target_ratio", "interpolation", "arithmetic", "orientation", "box_margin")
        self.preprocess = {name: getattr(settings, name) for name in names}
        self.preprocess |= {"mean": [0.5] * 3, "std": [0.5] * 3}
        generator = torch.Generator().manual_seed(5)
        self.directions = nn.Parameter(torch.randn(3 * 8 * 8, 12, generator=generator))

    @property
    def embedding_dim(self) -> int:
        return 12

    @property
    def branches(self) -> tuple[str, ...]:
        return ("products",)

    @property
    def spaces(self) -> dict[str, int]:
        return {"product": 12}

    @property
    def is_native(self) -> bool:
        return False

    @property
    def predicts(self) -> bool:
        return True

    def encode(
        self, images: Tensor, attributes: Sequence[str | int], pictures: Pictures | None = None
    ) -> Tensor:
        assert set(self.space_numbers(attributes)) <= {0}
        rows = F.adaptive_avg_pool2d(images, 8).flatten(1) @ self.directions
        return F.normalize(rows, dim=1)[:, None].expand(-1, len(attributes), -1)

    def class_probabilities(
        self, images: Tensor, attributes: Sequence[str | int], pictures: Pictures | None = None
    ) -> list[Tensor]:
        bright = images > 0.8  # of -1 to 1
        bar = bright[:, :, : images.shape[2] // 2].float().mean((2, 3))
        below = bright[:, :, images.shape[2] // 2 :].all(1).float().mean(1)
        halves = torch.stack([half.mean(1) for half in below.chunk(2, 1)], 1)
        every = [(20 * bar).softmax(1), (20 * halves).softmax(1), torch.zeros(len(images), 2)]
        return [every[number] for number in self.schema.indices(attributes)]

    def system(self, learning: Learning | None = None) -> Any:
        raise AssertionError("it has no C++ side")

    def config_dict(self, preprocess: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return {
            "format": checkpoint.FORMAT,
            "model": {"name": self.name},
            "schema": self.schema.to_dict(),
            "preprocess": dict(self.preprocess if preprocess is None else preprocess),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        own = config["preprocess"]
        return cls(**{key: value for key, value in own.items() if key not in ("mean", "std")})
