"""Modules: they own parameters and call the models of the C++ core."""

from __future__ import annotations

from placket.nn.asen import (
    Asen,
    AsenConfig,
    AsenPlusPlus,
    AsenPlusPlusConfig,
    AsenV2,
    AsenV2Config,
    Csn,
    CsnConfig,
    TripletNetwork,
    TripletNetworkConfig,
)
from placket.nn.clip import Clip, ClipImageEncoder, ClipOutput, ClipTextEncoder, TowerOutput
from placket.nn.composition import Composed, Composition
from placket.nn.m3net import M3Net, M3NetConfig
from placket.nn.mmfl_net import MmflConfig, MmflNet, ProductOutput
from placket.nn.modc import Modc, ModcConfig
from placket.nn.model import Attended, ExtraLoss, Learning, Model, Pictures
from placket.nn.network import (
    AttributeNetwork,
    NetworkConfig,
    NetworkOutput,
    crop_input,
    joint_embedding,
)
from placket.nn.raf_clip import RafClip
from placket.nn.rpf import Rpf, RpfConfig
from placket.nn.spec_module import SpecModule, TensorSpec
from placket.nn.trunk import Trunk

__all__ = [
    "Asen",
    "AsenConfig",
    "AsenPlusPlus",
    "AsenPlusPlusConfig",
    "AsenV2",
    "AsenV2Config",
    "Attended",
    "AttributeNetwork",
    "Clip",
    "ClipImageEncoder",
    "ClipOutput",
    "ClipTextEncoder",
    "Composed",
    "Composition",
    "Csn",
    "CsnConfig",
    "ExtraLoss",
    "Learning",
    "M3Net",
    "M3NetConfig",
    "MmflConfig",
    "MmflNet",
    "Modc",
    "ModcConfig",
    "Model",
    "NetworkConfig",
    "NetworkOutput",
    "Pictures",
    "ProductOutput",
    "RafClip",
    "Rpf",
    "RpfConfig",
    "SpecModule",
    "TensorSpec",
    "TowerOutput",
    "TripletNetwork",
    "TripletNetworkConfig",
    "Trunk",
    "crop_input",
    "joint_embedding",
]
