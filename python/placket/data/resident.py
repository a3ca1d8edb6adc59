"""The pixels of a packed store in a device's memory."""

from __future__ import annotations

import weakref
from pathlib import Path

import torch

from placket import _C
from placket.data.dataset import DatasetError, Split

__all__ = ["resident_pixels"]

# By store and device: the loaders of all splits share them, and they go when the store's data set goes.
_PIXELS: weakref.WeakKeyDictionary[_C.Store, dict[torch.device, _C.ResidentPixels]]
_PIXELS = weakref.WeakKeyDictionary()


def resident_pixels(split: Split, device: str | torch.device) -> _C.ResidentPixels:
    """Return the pixels of a split's store on a device, of all its splits; the first call copies them there.

    Raises:
        DatasetError: the split is no store of pixels (``placket.data.pack`` with a size).
        ValueError: the device has not enough free memory; the text names both numbers.
    """
    store = split.store
    if store is None or store.kind == _C.StoreKind.FILES:
        raise DatasetError(
            f"{split.root}: split '{split.name}' must be of a store of pixels to be resident on a device, "
            f"got {'loose files' if store is None else 'a store of files'}; pack it with a size"
        )
    device = torch.empty(0, device=device).device  # with its number
    kept = _PIXELS.setdefault(store, {})
    if device not in kept:
        needed, free = 3 * int(store.sizes[:, :2].prod(axis=1).sum()), free_memory(device)
        if needed > free:
            raise ValueError(
                f"resident: pixels of {split.root} must fit the {free:,} bytes that are free on {device}, "
                f"got {needed:,} bytes; pack the set at a smaller size"
            )
        kept[device] = _C.ResidentPixels(store, device)
    return kept[device]


def free_memory(device: torch.device) -> int:
    """Return how many bytes a new tensor may take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])
