from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_training import SIZE, TRUNK, draw_all

import placket
from placket.data import AsenDataset
from placket.nn import Rpf


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> AsenDataset:
    root = tmp_path_factory.mktemp("drawn")
    draw_all(root)
    return placket.data.open(root)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small models gain nothing by more, and other processes of the machine would slow them down."""
    torch.set_num_threads(1)


@pytest.fixture
def make_model(drawn: AsenDataset) -> Callable[..., Rpf]:
    def make(
        patch: str | None = None,
        *,
        trunk: str = TRUNK,
        seed: int = 0,
        dropout: float = 0.1,
        size: int = SIZE,
        project_per_attribute: bool = False,
        fit: str = "crop",
    ) -> Rpf:
        return placket.create_model(
            "rpf",
            schema=drawn.schema,
            trunk=trunk,
            patch=patch,
            attribute_dim=16,
            dropout=dropout,
            patch_size=32,
            project_per_attribute=project_per_attribute,
            preprocess={"size": size, "fit": fit},
            generator=torch.Generator().manual_seed(seed),
        )

    return make
