"""ASEN in its two versions, ASEN++, and the baselines of their papers: CSN and the triplet network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from placket import _C
from placket.nn.network import AttributeNetwork, NetworkConfig, describe, describe_trunk
from placket.schema import AttributeSchema


@dataclass(frozen=True)
class AsenConfig(NetworkConfig):
    """What an ASEN is made of. The defaults are the published ones.

    Attributes:
        attribute_dim: width of the spatial attention.
        embedding_dim: of the embedding.
        hidden_dim: of the channel attention's inner layer.
    """

    attributes: int = 8
    trunk: str = "resnet50"
    attribute_dim: int = 512
    embedding_dim: int = 1024
    hidden_dim: int = 512

    @property
    def head(self) -> str:
        """Return the description of the head."""
        return self._describe("asen")

    def _describe(self, name: str) -> str:
        return describe(
            name,
            attribute_dim=self.attribute_dim,
            embedding_dim=self.embedding_dim,
            hidden_dim=self.hidden_dim,
        )


class Asen(AttributeNetwork):
    """ASEN, "Fine-Grained Fashion Similarity Learning by Attribute-Specific Embedding Network" (AAAI 2020).

    An attribute chooses positions of the map, then channels of what they hold; a projection follows. The
    attribute enters as a one-hot vector, so that there is no attribute table. This is the version that the
    paper's figures come from.

    Args:
        schema: the attributes.
        trunk: description of the trunk (see ``Trunk``), or any module from images ``[B, 3, H, W]`` to a map
            ``[B, C, h, w]``.
        trunk_channels: C of a module given as trunk, where neither ``module.channels`` nor
            ``module.num_features`` says it and a trial run is not wanted.
        attribute_dim: width of the spatial attention.
        embedding_dim: of the embedding; None takes the trunk's channels.
        hidden_dim: of the channel attention's inner layer; None takes half the trunk's channels.
        box_threshold: share of the attention map's range above which ``explain.look`` counts a position as
            region; the method itself has no crops.
        preprocess, generator: see ``AttributeNetwork``.

    Raises:
        ValueError: a trunk's description or a size does not fit.
    """

    name = "asen"
    config_type = AsenConfig

    def __init__(
        self,
        schema: AttributeSchema,
        *,
        trunk: str | nn.Module = AsenConfig.trunk,
        trunk_channels: int | None = None,
        attribute_dim: int = AsenConfig.attribute_dim,
        embedding_dim: int | None = None,
        hidden_dim: int | None = None,
        box_threshold: float = AsenConfig.box_threshold,
        preprocess: Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        description = describe_trunk(trunk, trunk_channels)
        channels = _C.trunk_channels(description)
        config = AsenConfig(
            attributes=len(schema),
            trunk=description,
            box_threshold=box_threshold,
            attribute_dim=attribute_dim,
            embedding_dim=embedding_dim or channels,
            hidden_dim=hidden_dim or max(1, channels // 2),
        )
        super().__init__(schema, config, trunk, None, preprocess, generator)


@dataclass(frozen=True)
class AsenV2Config(AsenConfig):
    """What an ASEN v2 is made of. The defaults are the published ones.

    Attributes:
        attribute_dim: width of the attribute table and of the spatial attention.
        embedding_dim: of the embedding, which must be the trunk's channels.
        hidden_dim: of the channel attention's inner layer.
    """

    @property
    def head(self) -> str:
        """Return the description of the head."""
        return self._describe("asen_v2")


class AsenV2(AttributeNetwork):
    """The second version in ASEN's published code, which trains in fewer epochs (AAAI 2020).

    Both attentions read one attribute table, the map's projection has a BatchNorm, and nothing follows the
    channel attention: the embedding has the trunk's channels.

    Args:
        schema, trunk, trunk_channels, hidden_dim, box_threshold: see ``Asen``.
        attribute_dim: width of the attribute table and of the spatial attention.
        preprocess, generator: see ``AttributeNetwork``.

    Raises:
        ValueError: a trunk's description or a size does not fit.
    """

    name = "asen_v2"
    config_type = AsenV2Config

    def __init__(
        self,
        schema: AttributeSchema,
        *,
        trunk: str | nn.Module = AsenV2Config.trunk,
        trunk_channels: int | None = None,
        attribute_dim: int = AsenV2Config.attribute_dim,
        hidden_dim: int | None = None,
        box_threshold: float = AsenV2Config.box_threshold,
        preprocess: Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        description = describe_trunk(trunk, trunk_channels)
        channels = _C.trunk_channels(description)
        config = AsenV2Config(
            attributes=len(schema),
            trunk=description,
            box_threshold=box_threshold,
            attribute_dim=attribute_dim,
            embedding_dim=channels,
            hidden_dim=hidden_dim or max(1, channels // 2),
        )
        super().__init__(schema, config, trunk, None, preprocess, generator)


@dataclass(frozen=True)
class AsenPlusPlusConfig(NetworkConfig):
    """What an ASEN++ is made of. The defaults are the published ones.

    Attributes:
        attribute_dim: width of the attribute table, which both branches read.
        embedding_dim: of each branch's embedding.
        attention_dim, hidden_dim: width of the global branch's spatial attention, and of its channel
            attention's inner layer.
        patch_attention_dim, patch_hidden_dim: the same of the local branch.
    """

    attributes: int = 8
    trunk: str = "resnet50"
    patch_trunk: str = "resnet34"
    patch_size: int = 112
    region_weight: float = 0.6
    attribute_dim: int = 512
    embedding_dim: int = 1024
    attention_dim: int = 512
    hidden_dim: int = 512
    patch_attention_dim: int = 256
    patch_hidden_dim: int = 128

    @property
    def head(self) -> str:
        """Return the description of the global branch's head."""
        return self._describe(self.attention_dim, self.hidden_dim)

    @property
    def patch_head(self) -> str:
        """Return the description of the local branch's head."""
        return self._describe(self.patch_attention_dim, self.patch_hidden_dim)

    def _describe(self, attention_dim: int, hidden_dim: int) -> str:
        return describe(
            "asen_plus_plus",
            attribute_dim=self.attribute_dim,
            attention_dim=attention_dim,
            embedding_dim=self.embedding_dim,
            hidden_dim=hidden_dim,
        )


class AsenPlusPlus(AttributeNetwork):
    """ASEN++, "Fine-Grained Fashion Similarity Prediction by Attribute-Specific Embedding Learning".

    IEEE TIP 2021. The paper's global branch is ``region`` here, as in every network of this package, and its
    local branch, which looks at the crop that the global branch's spatial attention finds, is ``patch``. Both
    have the two attentions of ASEN v2, without BatchNorm, and a projection.

    Args:
        schema: the attributes.
        trunk: description of the global branch's trunk (see ``Trunk``), or any module from images
            ``[B, 3, H, W]`` to a map ``[B, C, h, w]``.
        patch: the same for the local branch; None for the global branch alone (the first training stage).
        trunk_channels, patch_channels: C of a module given as trunk, where neither ``module.channels`` nor
            ``module.num_features`` says it and a trial run is not wanted.
        attribute_dim: width of the attribute table, which both branches read.
        embedding_dim: of each branch's embedding.
        attention_dim, patch_attention_dim: width of each branch's spatial attention; None takes the lesser of
            ``attribute_dim`` and the trunk's channels.
        hidden_dim, patch_hidden_dim: of each branch's channel attention, its inner layer; None takes half
            the trunk's channels.
        patch_size: side of the local branch's crops in pixels.
        box_threshold: share of the attention map's range above which a position counts as region.
        region_weight: share (beta) of the global branch in the joint similarity, 0 to 1.
        preprocess, generator: see ``AttributeNetwork``.

    Raises:
        ValueError: a trunk's description or a size does not fit.
    """

    name = "asen_plus_plus"
    config_type = AsenPlusPlusConfig

    def __init__(
        self,
        schema: AttributeSchema,
        *,
        trunk: str | nn.Module = AsenPlusPlusConfig.trunk,
        patch: str | nn.Module | None = AsenPlusPlusConfig.patch_trunk,
        trunk_channels: int | None = None,
        patch_channels: int | None = None,
        attribute_dim: int = AsenPlusPlusConfig.attribute_dim,
        embedding_dim: int = AsenPlusPlusConfig.embedding_dim,
        attention_dim: int | None = None,
        hidden_dim: int | None = None,
        patch_attention_dim: int | None = None,
        patch_hidden_dim: int | None = None,
        patch_size: int = AsenPlusPlusConfig.patch_size,
        box_threshold: float = AsenPlusPlusConfig.box_threshold,
        region_weight: float = AsenPlusPlusConfig.region_weight,
        preprocess: Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        description = describe_trunk(trunk, trunk_channels)
        patch_description = "" if patch is None else describe_trunk(patch, patch_channels)
        channels = _C.trunk_channels(description)
        # Without a local branch its sizes are those that the published one would have here.
        patch_channels = _C.trunk_channels(patch_description or AsenPlusPlusConfig.patch_trunk)
        config = AsenPlusPlusConfig(
            attributes=len(schema),
            trunk=description,
            patch_trunk=patch_description,
            patch_size=patch_size,
            box_threshold=box_threshold,
            region_weight=region_weight,
            attribute_dim=attribute_dim,
            embedding_dim=embedding_dim,
            attention_dim=attention_dim or min(attribute_dim, channels),
            hidden_dim=hidden_dim or max(1, channels // 2),
            patch_attention_dim=patch_attention_dim or min(attribute_dim, patch_channels),
            patch_hidden_dim=patch_hidden_dim or max(1, patch_channels // 2),
        )
        super().__init__(schema, config, trunk, patch, preprocess, generator)


@dataclass(frozen=True)
class CsnConfig(NetworkConfig):
    """What a CSN is made of. The defaults are those of ASEN's published code.

    Attributes:
        embedding_dim: of the embedding.
    """

    attributes: int = 8
    trunk: str = "resnet50"
    embedding_dim: int = 1024

    @property
    def head(self) -> str:
        """Return the description of the head."""
        return describe("csn", embedding_dim=self.embedding_dim)


@dataclass(frozen=True)
class TripletNetworkConfig(CsnConfig):
    """What a triplet network is made of.

    Attributes:
        embedding_dim: of the embedding.
    """

    @property
    def head(self) -> str:
        """Return the description of the head."""
        return describe("triplet", embedding_dim=self.embedding_dim)


class _Baseline(AttributeNetwork):
    """A network without attention: the map's mean and a projection."""

    config_type: ClassVar[type[CsnConfig]]

    def __init__(
        self,
        schema: AttributeSchema,
        *,
        trunk: str | nn.Module = CsnConfig.trunk,
        trunk_channels: int | None = None,
        embedding_dim: int | None = None,
        preprocess: Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        description = describe_trunk(trunk, trunk_channels)
        config = self.config_type(
            attributes=len(schema),
            trunk=description,
            embedding_dim=embedding_dim or _C.trunk_channels(description),
        )
        super().__init__(schema, config, trunk, None, preprocess, generator)


class Csn(_Baseline):
    """CSN, "Conditional Similarity Networks" (CVPR 2017), as the baseline in ASEN's published code.

    The map's mean is projected, and a mask for each attribute, through a ReLU, weighs the embedding's
    dimensions. The regularisers of the CSN paper are not part of it.

    Args:
        schema, trunk, trunk_channels: see ``Asen``.
        embedding_dim: of the embedding; None takes the trunk's channels.
        preprocess, generator: see ``AttributeNetwork``.

    Raises:
        ValueError: a trunk's description or a size does not fit.
    """

    name = "csn"
    config_type = CsnConfig


class TripletNetwork(_Baseline):
    """The triplet network, baseline of ASEN's paper: it knows no attribute.

    The map's mean is projected; an image has the same embedding under every attribute. The layers are CSN's
    without its masks: the paper's own were not published.

    Args:
        schema, trunk, trunk_channels, embedding_dim: see ``Csn``.
        preprocess, generator: see ``AttributeNetwork``.

    Raises:
        ValueError: a trunk's description or a size does not fit.
    """

    name = "triplet"
    config_type = TripletNetworkConfig
