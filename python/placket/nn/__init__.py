"""Modules: they own parameters and call the models of the C++ core."""

from __future__ import annotations

from placket.nn.rpf import Pictures, Rpf, RpfConfig, RpfOutput, crop_input, joint_embedding
from placket.nn.spec_module import SpecModule, TensorSpec
from placket.nn.trunk import Trunk

__all__ = [
    "Pictures",
    "Rpf",
    "RpfConfig",
    "RpfOutput",
    "SpecModule",
    "TensorSpec",
    "Trunk",
    "crop_input",
    "joint_embedding",
]
