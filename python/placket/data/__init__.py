"""Data sets, batches of images, and the generated garments.

data = placket.data.open("path")
for batch in placket.data.Loader(data.split("train"), sampler="triplets", batch=16):
    batch.images  # [48, 3, 224, 224]
"""

from __future__ import annotations

import atexit
import os

from placket import _C
from placket._C import Augment, Batch, Preprocess
from placket.data import _pillow
from placket.data.asen import AsenDataset, DatasetError, Labels, Problem, Record, Split
from placket.data.loader import Loader
from placket.data.verify import VerifyReport, verify

__all__ = [
    "AsenDataset",
    "Augment",
    "Batch",
    "DatasetError",
    "Labels",
    "Loader",
    "Preprocess",
    "Problem",
    "Record",
    "Split",
    "VerifyReport",
    "open",
    "verify",
]

_C.set_decode_fallback(_pillow.decode)
# Waits for the loader threads that are in Python: after the interpreter's end they could not return from it.
atexit.register(_C.set_decode_fallback, None)


def open(path: str | os.PathLike[str]) -> AsenDataset:
    """Open a data set by its folder; the layout is recognised by its files.

    Raises:
        DatasetError: the folder holds no layout that is known; the text says what it must hold.
    """
    return AsenDataset(path)


"""Readers of published data layouts, and the generated garments."""
