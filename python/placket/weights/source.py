"""Files of weights, their tensors by name, and the report of what became of each."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from placket import checkpoint
from placket.nn import AttributeNetwork, Clip, Trunk


@dataclass
class WeightReport:
    """What became of every tensor of a source; ``str()`` is a table.

    Attributes:
        source: path or name.
        taken: name in the model to name in the source, with a remark where it was changed.
        left: name in the source to the reason why it was not taken.
    """

    source: str
    taken: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [("taken", name, f"from {origin}") for name, origin in self.taken.items()]
        rows += [("left", name, reason) for name, reason in self.left.items()]
        width = max((len(name) for _, name, _ in rows), default=0)
        lines = [f"{status:<6} {name:<{width}}  {remark}" for status, name, remark in rows]
        lines.append(f"{self.source}: {len(self.taken)} tensors taken, {len(self.left)} left")
        return "\n".join(lines)


@dataclass
class Found:
    """A tensor under the model's name."""

    tensor: Tensor
    origin: str


class Source:
    """The tensors of a source; those never asked for remain."""

    def __init__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self.name = name
        self.tensors = tensors
        self.used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise ValueError(
                f"weights: '{self.name}' must hold '{name}', got {len(self.tensors)} other tensors"
            )
        self.used.add(name)
        return self.tensors[name]

    def get(self, *names: str) -> Found:
        """Return one tensor, or several joined along their first dimension."""
        tensors = [self.take(name) for name in names]
        return Found(tensors[0] if len(tensors) == 1 else torch.cat(tensors), ", ".join(names))

    def rest(self) -> Iterator[str]:
        return (name for name in self.tensors if name not in self.used)


def read(source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a file, or of a placket checkpoint's folder, by name.

    What ``torch.save`` wrote may hold them under ``state_dict`` or ``model``, and with DDP's prefix
    ``module.``. Of a TorchScript archive, as OpenAI's CLIP comes, the code is left alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds something else than tensors.
    """
    path = Path(source)
    if path.is_dir():
        return checkpoint.read_tensors(path)
    if path.suffix == ".safetensors":
        return checkpoint.read_safetensors(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: '{path}' must be a file, got none")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        if _is_torchscript(path):
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
        # The reference code keeps its best score beside the weights, a NumPy number in some versions. NumPy 2
        # renamed the module of its numbers' constructor; files have the name of their time.
        scalar = np.float64(0).__reduce__()[0]
        numbers: list[Any] = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
        numbers += [np.dtype, type(np.dtype("f4")), type(np.dtype("f8"))]
        with torch.serialization.safe_globals(numbers):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"weights: '{path}' must be a whole file of tensors, got one with {_first_sentence(error)}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    tensors = (
        {} if not isinstance(loaded, Mapping) else {k: v for k, v in loaded.items() if isinstance(v, Tensor)}
    )
    if not tensors:
        raise ValueError(f"weights: '{path}' must hold tensors by name, got {type(loaded).__name__}")
    if all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _is_torchscript(path: Path) -> bool:
    """Whether a zip file is of ``torch.jit.save``, which has constants beside the tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _first_sentence(error: Exception) -> str:
    """What torch.load says goes on with advice for scripts."""
    return " ".join(str(error).split()).split(". ")[0]


def give(
    module: Trunk | AttributeNetwork | Clip,
    found: Mapping[str, Found],
    source: Source,
    reason: Callable[[str], str],
) -> WeightReport:
    """Copy the tensors into the module, after checking all of them."""
    state = module.state_dict()
    for name, target in state.items():
        if found[name].tensor.shape != target.shape:
            raise ValueError(
                f"weights: '{name}' must have shape {list(target.shape)}, "
                f"got {list(found[name].tensor.shape)} from '{found[name].origin}' of '{source.name}'"
            )
    report = WeightReport(source.name)
    with torch.no_grad():
        for name, target in state.items():
            target.copy_(found[name].tensor)
            report.taken[name] = found[name].origin
    report.left = {name: reason(name) for name in source.rest()}
    return report
