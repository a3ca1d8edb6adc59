"""MMFL-Net: a photograph of a product, represented as a whole, by its parts and by its details."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from placket import _C, checkpoint
from placket.nn.model import Learning, Model, Pictures, full_preprocess, take_options
from placket.nn.network import describe
from placket.nn.spec_module import SpecModule, TensorSpec
from placket.nn.trunk import Trunk
from placket.schema import AttributeSchema

PRODUCT = "product"
"""The space of the embedding."""


@dataclass(frozen=True)
class MmflConfig:
    """What an MMFL-Net is made of; see ``MmflNet``."""

    trunk: str
    map_dim: int
    fusion_dim: int
    embedding_dim: int
    stripes: tuple[int, ...]
    local: bool
    drop: float
    attributes: int

    @property
    def head(self) -> str:
        """Return the description of the head (csrc/models/product_head.h)."""
        settings = {**dataclasses.asdict(self), "stripes": "/".join(map(str, self.stripes or (0,)))}
        del settings["trunk"]
        return describe("mmfl", **settings)


class ProductOutput(NamedTuple):
    """What an MMFL-Net makes of images."""

    embedding: Tensor  #: ``[B, G E]`` L2-normalised: the granularities joined, as they are searched by
    granularities: dict[str, Tensor]  #: of "global", "part", "local": ``[B, n E]`` L2-normalised
    features: Tensor  #: ``[B, G, E]`` before the BNNeck, in the order of ``MmflNet.features``
    necks: Tensor  #: ``[B, G, E]`` behind it
    attribute_logits: Tensor  #: ``[B, M]`` of the probability that the product has a value; M may be 0


class MmflNet(Model):
    """MMFL-Net (Bao et al., arXiv 2210.15128; Multimedia Tools and Applications): shoppers' photographs to
    shops'.

    Public is an abstract: features of several scales are fused from the top down and from the bottom up;
    a global, a part-informed and a local branch embed with several granularities; an improved tri-hard loss,
    a centre loss and classification of products and attributes teach them. No size and no figure is known.
    Layers, widths, losses (csrc/train/systems/product.h) and schedule are a **reconstruction, ours**, after
    the practice of BiFPN, MGN, OSNet, Top-DB-Net and "Bag of Tricks" (csrc/models/product_head.cpp has the
    equations).

    It has one space, "product", in which two photographs are alike as far as they show one product. The
    schema's attributes are not spaces: they are predicted, ``class_probabilities``.

    Args:
        schema: the attributes.
        trunk: description of a built-in trunk with stages, see ``Trunk``.
        map_dim: channels of the map that the branches look at; None takes half the trunk's.
        fusion_dim: channels of the fused maps; None takes a quarter of ``map_dim``, 0 leaves the fusion out.
        embedding_dim: E of each feature.
        stripes: of the part branch: for each number a tower with so many horizontal stripes; none leaves the
            branch out.
        local: whether there is a local branch.
        drop: share of the rows, the most active ones, that the local branch loses in training.
        attributes: whether it predicts the schema's attributes.
        preprocess, generator: see ``AttributeNetwork``.

    Raises:
        ValueError: the trunk has fewer than three stages to be fused, or a size is out of range.
    """

    name: ClassVar[str] = "mmfl"
    learns_products: ClassVar[bool] = True

    def __init__(
        self,
        schema: AttributeSchema,
        *,
        trunk: str = "resnet50,stage=4,last_stride=1",
        map_dim: int | None = None,
        fusion_dim: int | None = None,
        embedding_dim: int = 256,
        stripes: Sequence[int] = (2, 3),
        local: bool = True,
        drop: float = 1 / 3,
        attributes: bool = True,
        preprocess: Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        width = map_dim or max(4, _C.trunk_channels(trunk) // 2)
        config = MmflConfig(
            trunk=trunk,
            map_dim=width,
            fusion_dim=max(1, width // 4) if fusion_dim is None else fusion_dim,
            embedding_dim=embedding_dim,
            stripes=tuple(stripes),
            local=local,
            drop=drop,
            attributes=sum(schema.value_counts) if attributes else 0,
        )
        self._make(schema, config, preprocess, generator)

    def _make(
        self,
        schema: AttributeSchema,
        config: MmflConfig,
        preprocess: Mapping[str, Any] | None,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.schema = schema
        self.config = config
        self.trunk = Trunk(config.trunk, generator)
        specs = [TensorSpec(*spec) for spec in _C.product_head_spec(config.head, config.trunk)]
        self.head = SpecModule(specs, generator)
        self.preprocess = full_preprocess(self.trunk.mean, self.trunk.std, preprocess)
        #: The granularity of each of its G features, in their order.
        self.features = tuple(granularity for granularity, _ in _C.product_features(config.head))
        self._levels = _C.product_head_levels(config.head)

    @property
    def embedding_dim(self) -> int:
        """D = G E, the width of the embedding."""
        return len(self.features) * self.config.embedding_dim

    @property
    def branches(self) -> tuple[str, ...]:
        """The one part that is trained."""
        return (PRODUCT,)

    @property
    def spaces(self) -> dict[str, int]:
        """The one space, "product"."""
        return {PRODUCT: self.embedding_dim}

    @property
    def predicts(self) -> bool:
        """Whether it predicts the schema's attributes."""
        return self.config.attributes > 0

    def forward(self, images: Tensor) -> ProductOutput:
        """Embed images ``[B, 3, H, W]``, normalised."""
        config = self.config
        statistics = self.training and not self.trunk.freeze_batch_norm
        mode = (self.training, statistics, 1)
        maps = torch.ops.placket.trunk_maps(images, self.trunk.tensors(), config.trunk, self._levels, *mode)
        features, necks, logits = torch.ops.placket.product_head(
            maps, self.head.tensors(), config.head, config.trunk, *mode
        )
        names = self.features
        granularities = {
            name: F.normalize(necks[:, [i for i, own in enumerate(names) if own == name]].flatten(1), dim=1)
            for name in dict.fromkeys(names)
        }
        return ProductOutput(F.normalize(necks.flatten(1), dim=1), granularities, features, necks, logits)

    def encode(
        self, images: Tensor, attributes: Sequence[str | int], pictures: Pictures | None = None
    ) -> Tensor:
        """Return the embeddings ``[B, K, D]``, L2-normalised, in each of K spaces.

        Args:
            images: ``[B, 3, H, W]``, normalised.
            attributes: "product", or 0.
            pictures: not needed.

        Raises:
            ValueError: there is no such space.
        """
        spaces = self.space_numbers(attributes)
        rows = cast(Tensor, self(images).embedding)
        return rows.unsqueeze(1).expand(-1, len(spaces), -1)

    def class_probabilities(
        self, images: Tensor, attributes: Sequence[str | int], pictures: Pictures | None = None
    ) -> list[Tensor]:
        """Return for each attribute the softmax ``[B, values]`` of its logits.

        The training takes each value by itself, so that a product may have several: the probability that it
        has a value is the sigmoid of its logit.

        Args:
            images: ``[B, 3, H, W]``, normalised.
            attributes: names or ids.
            pictures: not needed.

        Raises:
            ValueError: it was made without attributes.
        """
        if not self.predicts:
            raise ValueError("mmfl: attributes must be predicted, got a model without a head for them")
        logits = self(images).attribute_logits.float().split(self.schema.value_counts, 1)
        return [logits[i].softmax(1) for i in self.schema.indices(attributes)]

    def system(self, learning: Learning | None = None) -> _C.System:
        """Return the C++ side; see ``Model.system``.

        Raises:
            ValueError: there are extra losses, which it does not take.
        """
        learning = learning or Learning()
        learning.no_extra_losses(self.name)
        return _C.product_system(
            self.config.trunk,
            self.config.head,
            learning.products,
            learning.domains,
            take_options(_C.ProductOptions(), learning.loss),
            {**dict(self.named_parameters()), **dict(self.named_buffers())},
            list(self.schema.value_counts),
            learning.seed,
        )

    def config_dict(self, preprocess: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the content of a checkpoint's ``config.json``; see ``Model.config_dict``."""
        settings = dataclasses.asdict(self.config)
        return {
            "format": checkpoint.FORMAT,
            "model": {"name": self.name, **settings, "stripes": list(self.config.stripes)},
            "schema": self.schema.to_dict(),
            "preprocess": dict(self.preprocess if preprocess is None else preprocess),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Make the model that ``config_dict`` describes."""
        fields = {key: value for key, value in config["model"].items() if key != "name"}
        known = {field.name for field in dataclasses.fields(MmflConfig)}
        if fields.keys() != known:
            raise ValueError(
                f"load: model must have the keys {', '.join(sorted(known))}, got {', '.join(sorted(fields))}"
            )
        fields["stripes"] = tuple(fields["stripes"])
        model = cls.__new__(cls)
        schema = AttributeSchema.from_dict(config["schema"])
        model._make(schema, MmflConfig(**fields), config["preprocess"], None)
        return model
