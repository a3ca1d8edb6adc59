"""M3-Net (CVPR 2023), reconstructed: representations of attributes and of classes, their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from placket.nn.network import AttributeNetwork, NetworkConfig, describe, describe_trunk
from placket.schema import AttributeSchema

Variant = Literal["full", "attribute", "class"]


@dataclass(frozen=True)
class M3NetConfig(NetworkConfig):
    """What an M3-Net is made of. None of these numbers is published.

    Attributes:
        values: number of values of each attribute, whose sum is the number of classes.
        variant: "full"; "attribute" (M3-Net_a), whose classes have their attribute's attention; "class"
            (M3-Net_c), which has no attribute sub-network.
        attribute_dim: width of the attribute table and of both attentions.
        embedding_dim: of the attribute representation psi.
        class_dim: of the class representations phi.
        class_query_dim: of the class embeddings that the class attention starts from.
        class_output_dim: of the part that the classes add to an attribute's embedding.
    """

    attributes: int = 8
    trunk: str = "resnet50"
    values: tuple[int, ...] = ()
    variant: Variant = "full"
    attribute_dim: int = 512
    embedding_dim: int = 512
    class_dim: int = 128
    class_query_dim: int = 512
    class_output_dim: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "values", tuple(self.values))  # JSON's list

    @property
    def head(self) -> str:
        """Return the description of the head with both sub-networks."""
        return describe(
            "m3net",
            classes="/".join(map(str, self.values)),
            variant=self.variant,
            attribute_dim=self.attribute_dim,
            embedding_dim=self.embedding_dim,
            class_dim=self.class_dim,
            class_query_dim=self.class_query_dim,
            class_output_dim=self.class_output_dim,
        )


class M3Net(AttributeNetwork):
    """A representation for each attribute and one for each class, a reconstruction of M3-Net.

    Published are (CVPR 2023, poster and abstract) that an attribute sub-network gives N attribute-specific
    and a class sub-network M class-specific representations, that learning goes from one to the other, the
    losses of the classes (``class_recognition``, ``class_instance_triplet``, ``class_centre_triplet``), the
    variants with one kind of attention only, the data sets and the tables of results.

    Ours is the rest: the attribute sub-network is ASEN++'s global branch with a smaller output; a class asks
    with its embedding and its attribute's representation, and its attention has its attribute's as a prior;
    the classifier of a class is linear in its representation; centres are exponential averages; all widths,
    margins, weights and rates. Ours is also what is ranked. The embedding of an attribute is its normalised
    representation beside a projection of its classes' normalised representations, mixed by their predicted
    probabilities: nothing in it knows an image's label. ``asfr-multilabel-class/v1`` ranks by the class that
    a query names.

    ``NetworkOutput.class_embedding`` ``[B, M, F]`` and ``class_logits`` ``[B, M]`` are of all classes, those
    of attribute 0 first, whatever attributes were asked for; a class's probability is the sigmoid of its
    logit, or the softmax within its attribute where an image has one value (``evaluate.classify_split``).

    Args:
        schema: the attributes and their values, which are the classes.
        trunk: description of the trunk (see ``Trunk``), or any module from images ``[B, 3, H, W]`` to a map
            ``[B, C, h, w]``.
        trunk_channels: C of a module given as trunk, where neither ``module.channels`` nor
            ``module.num_features`` says it and a trial run is not wanted.
        variant, attribute_dim, embedding_dim, class_dim, class_query_dim, class_output_dim: see
            ``M3NetConfig``.
        preprocess, generator: see ``AttributeNetwork``.

    Raises:
        ValueError: a trunk's description or a size does not fit, or an attribute has no values.
    """

    name = "m3net"
    config_type = M3NetConfig

    def __init__(
        self,
        schema: AttributeSchema,
        *,
        trunk: str | nn.Module = M3NetConfig.trunk,
        trunk_channels: int | None = None,
        variant: Variant = M3NetConfig.variant,
        attribute_dim: int = M3NetConfig.attribute_dim,
        embedding_dim: int = M3NetConfig.embedding_dim,
        class_dim: int = M3NetConfig.class_dim,
        class_query_dim: int = M3NetConfig.class_query_dim,
        class_output_dim: int = M3NetConfig.class_output_dim,
        preprocess: Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        config = M3NetConfig(
            attributes=len(schema),
            trunk=describe_trunk(trunk, trunk_channels),
            values=tuple(schema.value_counts),
            variant=variant,
            attribute_dim=attribute_dim,
            embedding_dim=embedding_dim,
            class_dim=class_dim,
            class_query_dim=class_query_dim,
            class_output_dim=class_output_dim,
        )
        super().__init__(schema, config, trunk, None, preprocess, generator)
