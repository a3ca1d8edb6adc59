from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

DATA = Path(os.environ.get("PLACKET_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A GPU test is skipped without a device; with PLACKET_REQUIRE_GPU=1 it fails."""
    if torch.cuda.is_available() or os.environ.get("PLACKET_REQUIRE_GPU") == "1":
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The folder of real photographs; tests that need it are skipped where it is absent."""
    if not (DATA / "deepfashion-fine6").is_dir():
        pytest.skip(f"no real photographs in {DATA} (set PLACKET_DATA)")
    return DATA
