"""Data sets, batches of images, and the generated garments.

data = placket.data.open("path")
for batch in placket.data.Loader(data.split("train"), sampler="triplets", batch=16):
    batch.images  # [48, 3, 224, 224]
"""

from __future__ import annotations

import atexit
import os

from placket import _C
from placket._C import Augment, Batch, ColorJitter, GaussianBlur, Preprocess, RandomCrop, RandomErasing
from placket.data import _pillow
from placket.data.asen import AsenDataset
from placket.data.cirr import CirrDataset
from placket.data.co_parsing import CoParsingDataset
from placket.data.columns import Labels, Masks, Texts
from placket.data.compositions import composed, joined_captions
from placket.data.dataset import Compositions, Dataset, DatasetError, Problem, Record, Split
from placket.data.deepfashion import AttributePredictionDataset, ConsumerToShopDataset, InShopDataset
from placket.data.fashion200k import Fashion200kDataset
from placket.data.fashioniq import FashionIqDataset
from placket.data.folders import FolderDataset
from placket.data.loader import BatchSampler, Loader
from placket.data.oml import OmlDataset
from placket.data.regions import read_mask
from placket.data.store import StoreDataset, is_store, pack, read_image
from placket.data.street2shop import Street2ShopDataset
from placket.data.table import TableDataset, TableLayout
from placket.data.verify import VerifyReport, verify

__all__ = [
    "AsenDataset",
    "AttributePredictionDataset",
    "Augment",
    "Batch",
    "BatchSampler",
    "CirrDataset",
    "CoParsingDataset",
    "ColorJitter",
    "Compositions",
    "ConsumerToShopDataset",
    "Dataset",
    "DatasetError",
    "Fashion200kDataset",
    "FashionIqDataset",
    "FolderDataset",
    "GaussianBlur",
    "InShopDataset",
    "Labels",
    "Loader",
    "Masks",
    "OmlDataset",
    "Preprocess",
    "Problem",
    "RandomCrop",
    "RandomErasing",
    "Record",
    "Split",
    "StoreDataset",
    "Street2ShopDataset",
    "TableDataset",
    "TableLayout",
    "Texts",
    "VerifyReport",
    "composed",
    "joined_captions",
    "open",
    "pack",
    "read_image",
    "read_mask",
    "verify",
]

_C.set_decode_fallback(_pillow.decode)
# Waits for the loader threads that are in Python: after the interpreter's end they could not return from it.
atexit.register(_C.set_decode_fallback, None)


_LAYOUTS = (
    AsenDataset,
    AttributePredictionDataset,
    InShopDataset,
    ConsumerToShopDataset,
    CirrDataset,
    FashionIqDataset,
    Fashion200kDataset,
    Street2ShopDataset,
    OmlDataset,
    CoParsingDataset,
    FolderDataset,
)


def open(path: str | os.PathLike[str]) -> Dataset:
    """Open a data set; the layout is recognised by its files.

    Args:
        path: a folder in the layout of ``AsenDataset``, ``AttributePredictionDataset``, ``InShopDataset``,
            ``ConsumerToShopDataset``, ``CirrDataset``, ``FashionIqDataset``, ``Fashion200kDataset``,
            ``Street2ShopDataset``, ``OmlDataset``, ``CoParsingDataset`` or, where it is none of these,
            ``FolderDataset``; a CSV file (``OmlDataset``); a YAML file that says which columns of a table
            hold what (``TableLayout``); or a file that ``pack`` wrote (``StoreDataset``).

    Raises:
        DatasetError: there is no layout that is known; the text says what was looked for.
    """
    if os.path.isfile(path):
        if is_store(path):
            return StoreDataset(path)
        is_table = os.fspath(path).endswith(".csv")
        return OmlDataset(path) if is_table else TableDataset(TableLayout.load(path))
    if not os.path.isdir(path):
        raise DatasetError(f"{path}: data set must be a folder or a file, got none there")
    for layout in _LAYOUTS:
        if layout.recognises(path):
            return layout(path)
    looked = "; ".join(layout.LOOKED_FOR for layout in _LAYOUTS)
    raise DatasetError(f"{path}: data set must hold the files of a known layout, got none of these: {looked}")
