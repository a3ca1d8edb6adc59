"""RPF: "From Region to Patch" (SIGIR 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from placket import _C
from placket.nn.network import AttributeNetwork, NetworkConfig, describe, describe_trunk
from placket.schema import AttributeSchema


@dataclass(frozen=True)
class RpfConfig(NetworkConfig):
    """What an RPF is made of. The defaults are the published ones.

    Attributes:
        attribute_dim: width of the attribute table and of the region branch's attention.
        embedding_dim: of each branch's embedding.
        hidden_dim: of both branches' MLP.
        heads: of the cross-attention.
        dropout: of both heads' MLP.
        project_background: whether the background passes the same projection as the region; the published
            code leaves it out, which requires ``embedding_dim`` to be the trunk's channels.
        project_per_attribute: whether the region branch projects the pooled features of each attribute by a
            weight of its own, ``region.head.pooled_proj.weight [A, E, C]``. Not in the paper: its one weight
            ``[E, C]`` for all attributes lets the directions that one attribute needs into the cosines of
            the others.
    """

    attributes: int = 8
    trunk: str = "resnet50"
    patch_trunk: str = "vit_base_patch16_224,dropout=0.1"
    region_weight: float = 0.3
    attribute_dim: int = 512
    embedding_dim: int = 1024
    hidden_dim: int = 512
    heads: int = 12
    dropout: float = 0.1
    project_background: bool = False
    project_per_attribute: bool = False

    @property
    def head(self) -> str:
        """Return the description of the region-aware head."""
        return describe(
            "rpf_region",
            attribute_dim=self.attribute_dim,
            embedding_dim=self.embedding_dim,
            hidden_dim=self.hidden_dim,
            dropout=self.dropout,
            project_background=self.project_background,
            project_per_attribute=self.project_per_attribute,
        )

    @property
    def patch_head(self) -> str:
        """Return the description of the patch-aware head."""
        return describe(
            "rpf_patch",
            attribute_dim=self.attribute_dim,
            embedding_dim=self.embedding_dim,
            hidden_dim=self.hidden_dim,
            heads=self.heads,
            dropout=self.dropout,
        )


class Rpf(AttributeNetwork):
    """Region-aware branch and, unless ``patch`` is None, patch-aware branch.

    Args:
        schema: the attributes.
        trunk: description of the region branch's trunk (see ``Trunk``), or any module from images
            ``[B, 3, H, W]`` to a map ``[B, C, h, w]``.
        patch: the same for the patch branch; None for the region branch alone (the first training stage).
        trunk_channels, patch_channels: C of a module given as trunk, where neither ``module.channels`` nor
            ``module.num_features`` says it and a trial run is not wanted.
        attribute_dim: width of the attribute table.
        embedding_dim: of each branch's embedding; None takes the channels of the region trunk.
        hidden_dim: of the MLPs; None takes half the embedding.
        heads: of the cross-attention; None takes one for each 64 channels of the patch trunk.
        dropout, project_background, project_per_attribute, patch_size, box_threshold, region_weight: see
            ``RpfConfig``.
        preprocess, generator: see ``AttributeNetwork``.

    Raises:
        ValueError: a trunk's description or a size does not fit.
    """

    name = "rpf"
    config_type = RpfConfig

    def __init__(
        self,
        schema: AttributeSchema,
        *,
        trunk: str | nn.Module = RpfConfig.trunk,
        patch: str | nn.Module | None = RpfConfig.patch_trunk,
        trunk_channels: int | None = None,
        patch_channels: int | None = None,
        attribute_dim: int = RpfConfig.attribute_dim,
        embedding_dim: int | None = None,
        hidden_dim: int | None = None,
        heads: int | None = None,
        dropout: float = RpfConfig.dropout,
        project_background: bool = RpfConfig.project_background,
        project_per_attribute: bool = RpfConfig.project_per_attribute,
        patch_size: int = RpfConfig.patch_size,
        box_threshold: float = RpfConfig.box_threshold,
        region_weight: float = RpfConfig.region_weight,
        preprocess: Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        description = describe_trunk(trunk, trunk_channels)
        patch_description = "" if patch is None else describe_trunk(patch, patch_channels)
        embedding_dim = embedding_dim or _C.trunk_channels(description)
        if heads is None:
            heads = max(1, _C.trunk_channels(patch_description) // 64) if patch_description else 1
        config = RpfConfig(
            attributes=len(schema),
            trunk=description,
            patch_trunk=patch_description,
            attribute_dim=attribute_dim,
            embedding_dim=embedding_dim,
            hidden_dim=hidden_dim or max(1, embedding_dim // 2),
            heads=heads,
            dropout=dropout,
            project_background=project_background,
            project_per_attribute=project_per_attribute,
            patch_size=patch_size,
            box_threshold=box_threshold,
            region_weight=region_weight,
        )
        super().__init__(schema, config, trunk, patch, preprocess, generator)
