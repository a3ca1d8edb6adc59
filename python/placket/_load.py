"""Loads the extension, after checking that it was built for the torch and Python that are running."""

from __future__ import annotations

import sys
from types import ModuleType

import torch


def load_extension() -> ModuleType:
    """Import ``placket._C``, which registers the operators.

    Raises:
        ImportError: the extension is missing or was built for another torch or Python; the text gives the
            command that mends it.
    """
    try:
        from placket import _build
    except ImportError:
        raise ImportError(
            "placket's extension was not built; build it here with: pip install --no-build-isolation ."
        ) from None
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if (torch.__version__, python) != (_build.TORCH, _build.PYTHON):
        raise ImportError(
            f"placket was built for torch {_build.TORCH} and Python {_build.PYTHON}; "
            f"this is torch {torch.__version__} and Python {python}.\n"
            "Rebuild it here with: pip install --no-build-isolation --force-reinstall --no-deps placket"
        )
    from placket import _C

    return _C
