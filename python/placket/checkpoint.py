"""A model on disk: ``model.safetensors`` and ``config.json``; nothing is pickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

FORMAT = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def save(directory: str | os.PathLike[str], tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a checkpoint; each file is written beside its place and renamed when whole."""
    from safetensors.torch import save

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace_file(folder / WEIGHTS, save(contiguous, metadata={"format": "pt"}))
    replace_file(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint's ``config.json``.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not JSON, or of another format.
    """
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"load: '{directory}' must be a checkpoint's folder, got no {CONFIG} in it")
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"load: '{path}' must be JSON, got an error at {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else config
        raise ValueError(f"load: '{path}' must have format {FORMAT}, got {found!r}")
    return config


def read_tensors(directory: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a checkpoint's tensors.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it is damaged.
    """
    return read_safetensors(Path(directory) / WEIGHTS)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"load: '{path}' must be a file, got none")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"load: '{path}' must be a whole safetensors file, got one with {error}") from error


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Give a module exactly these tensors.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape; nothing is changed then.
    """
    state = module.state_dict()
    wrong = [f"'{name}' missing" for name in state.keys() - tensors.keys()]
    wrong += [f"'{name}' unknown" for name in tensors.keys() - state.keys()]
    for name in state.keys() & tensors.keys():
        if state[name].shape != tensors[name].shape:
            wrong.append(f"'{name}' of shape {list(tensors[name].shape)} for {list(state[name].shape)}")
    if wrong:
        listed = ", ".join(sorted(wrong)[:10]) + (f" and {len(wrong) - 10} more" if len(wrong) > 10 else "")
        raise ValueError(f"load: '{source}' must hold the model's {len(state)} tensors, got {listed}")
    module.load_state_dict(tensors, assign=any(tensor.is_meta for tensor in state.values()))


def replace_file(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it when it is whole and on the disk."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
