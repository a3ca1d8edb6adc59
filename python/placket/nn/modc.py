"""MODC: class centres kept online (ECCV 2022), reconstructed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from placket import _C
from placket.nn.network import AttributeNetwork, NetworkConfig, assignment, describe, describe_trunk
from placket.schema import AttributeSchema

Head = Literal["asen_plus_plus", "asen_v2", "rpf_region"]


@dataclass(frozen=True)
class ModcConfig(NetworkConfig):
    """What a MODC is made of.

    Attributes:
        classes: values of all attributes, of each of which a centre is kept.
        region_head: "asen_plus_plus", the global branch's; "asen_v2"; or "rpf_region", RPF's.
        attribute_dim: width of the attribute table and of the spatial attention.
        embedding_dim: of the embedding and the centres.
        hidden_dim: of the channel attention's inner layer, or of RPF's MLP.
        temperature: of ``class_probabilities``.
    """

    attributes: int = 8
    trunk: str = "resnet50"
    classes: int = 54
    region_head: Head = "asen_plus_plus"
    attribute_dim: int = 512
    embedding_dim: int = 1024
    hidden_dim: int = 512
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"network: temperature must be positive, got {self.temperature}")

    def for_schema(self, schema: AttributeSchema) -> Self:
        """Return the same for other attributes."""
        return dataclasses.replace(super().for_schema(schema), classes=sum(schema.value_counts))

    @property
    def head(self) -> str:
        """Return the description of the head."""
        settings: dict[str, object] = {
            "attribute_dim": self.attribute_dim,
            "embedding_dim": self.embedding_dim,
            "hidden_dim": self.hidden_dim,
        }
        if self.region_head == "asen_plus_plus":
            settings["attention_dim"] = self.attribute_dim
        elif self.region_head == "rpf_region":
            settings["dropout"] = 0.0
        return describe(self.region_head, **settings)


class Modc(AttributeNetwork):
    """MODC, multi-granularity representations by online class centres (ECCV 2022, as M3-Net cites it).

    Public are the idea and results: attribute representations are learnt at the level of instances and of
    clusters; the cluster centres of each attribute are estimated online; similarity to the centres divides an
    attribute's space among its classes; three stages add supervision, at last with augmented views and pseudo
    labels. The rest is a **reconstruction, ours**, and each choice a setting:

    - the encoder (``head``): ASEN++'s global branch, the embedding its normalised output;
    - the centres (``LossConfig.centre_momentum``): unit vectors, one for each value, moved in each step to
      ``normalise(m * centre + (1 - m) * mean of the batch's unit embeddings of the class)``, m = 0.9, by
      labelled images only; zero, and left out of every loss and softmax, before the class's first image;
    - the instance stage: ``triplet_region``, ASEN's triplets, ``LossConfig.margin`` 0.2;
    - the cluster stage: besides, ``region_prototype``, the cross-entropy of the softmax over the attribute's
      centres (``LossConfig.centre_temperature`` 0.1), and ``region_centre_triplet``, between the own and the
      nearest other centre;
    - the last stage: two augmented copies of each image (``StageConfig.copies``), ``region_pseudo_label`` for
      images without a label of an attribute where the nearest centre's probability exceeds
      ``LossConfig.pseudo_confidence``, 0.8, and ``region_consistency`` between the copies' assignments, both
      of which rise over ``StageConfig.ramp_epochs``;
    - epochs, rates, weights and augmentation, recipe "modc";
    - ranking by class agreement too, ``placket.agreement``: ``z . z' + weight * p . p'``.

    ``class_centres`` ``[classes, E]`` is a buffer, the values of all attributes in the schema's order. The
    stages with a loss of the centres fill it; after the instance stage alone it is zero.

    Args:
        schema: the attributes.
        trunk: description of the trunk (see ``Trunk``), or any module from images ``[B, 3, H, W]`` to a map
            ``[B, C, h, w]``.
        trunk_channels: C of a module given as trunk, where neither ``module.channels`` nor
            ``module.num_features`` says it and a trial run is not wanted.
        head: "asen_plus_plus", "asen_v2" (``embedding_dim`` must be the trunk's channels) or "rpf_region".
        attribute_dim: width of the attribute table and of the spatial attention.
        embedding_dim: of the embedding; None takes the trunk's channels.
        hidden_dim: of the head's inner layer; None takes half the trunk's channels.
        temperature: of ``class_probabilities``.
        box_threshold: share of the attention map's range above which ``explain.look`` counts a position as
            region; the method itself has no crops.
        preprocess, generator: see ``AttributeNetwork``.

    Raises:
        ValueError: a trunk's description or a size does not fit.
    """

    name = "modc"
    config_type = ModcConfig
    config: ModcConfig
    class_centres: Tensor

    def __init__(
        self,
        schema: AttributeSchema,
        *,
        trunk: str | nn.Module = ModcConfig.trunk,
        trunk_channels: int | None = None,
        head: Head = ModcConfig.region_head,
        attribute_dim: int = ModcConfig.attribute_dim,
        embedding_dim: int | None = None,
        hidden_dim: int | None = None,
        temperature: float = ModcConfig.temperature,
        box_threshold: float = ModcConfig.box_threshold,
        preprocess: Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        description = describe_trunk(trunk, trunk_channels)
        channels = _C.trunk_channels(description)
        config = ModcConfig(
            attributes=len(schema),
            trunk=description,
            box_threshold=box_threshold,
            classes=sum(schema.value_counts),
            region_head=head,
            attribute_dim=attribute_dim,
            embedding_dim=embedding_dim or channels,
            hidden_dim=hidden_dim or max(1, channels // 2),
            temperature=temperature,
        )
        super().__init__(schema, config, trunk, None, preprocess, generator)

    @property
    def predicts_by_embedding(self) -> bool:
        """Whether it estimates values from embeddings: by its centres."""
        return True

    def centres(self, attribute: str | int) -> Tensor:
        """Return the class centres ``[values, E]`` of an attribute; zero for a value that was never seen."""
        parts: Sequence[Tensor] = self.class_centres.split(self.schema.value_counts)
        return parts[self.schema.index(attribute)]

    def probabilities_of(self, embeddings: Tensor, attribute: str | int) -> Tensor:
        """Estimate values by the nearest class centres: ``softmax(z . centres / temperature)``."""
        centres = self.centres(attribute).to(embeddings.device)
        return assignment(embeddings, centres, self.config.temperature)
