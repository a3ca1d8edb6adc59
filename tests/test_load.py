"""What importing says where the extension does not fit the environment."""

from __future__ import annotations

import re
import sys

import pytest
import torch

import placket
from placket import _build
from placket._load import load_extension


@pytest.mark.parametrize(("key", "value"), [("TORCH", "2.4.1+cu121"), ("PYTHON", "3.9")])
def test_another_torch_or_python_is_named(key: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_build, key, value)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    message = (
        f"placket was built for torch {_build.TORCH} and Python {_build.PYTHON}; "
        f"this is torch {torch.__version__} and Python {python}.\n"
        "Rebuild it here with: pip install --no-build-isolation --force-reinstall --no-deps placket"
    )
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        load_extension()


def test_a_missing_extension_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "placket._build", None)
    monkeypatch.delattr(placket, "_build")
    with pytest.raises(ImportError, match=r"was not built; build it here with: pip install --no-build-isol"):
        load_extension()
