"""The model that embeds what an index holds, kept in its folder with the checksums of its files.

Its ``config.json`` says besides, as ``flip``, whether embeddings are averaged over mirror images.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from placket import checkpoint, models
from placket.nn import Model
from placket.runs import write_text

__all__ = ["check_model", "embeds_flipped", "keep_model", "load_model", "replace_model", "verify_model"]

_FILES = (checkpoint.CONFIG, checkpoint.WEIGHTS)
_SUMS = "SHA256SUMS"
_NEW = "model.new"
_FLIP = "flip"


def keep_model(model: Model, index: Path, flip: bool) -> None:
    """Write a model to ``<index>/model``, and whether what it embeds is averaged over mirror images.

    Raises:
        ValueError: there is another one, or a damaged one, or it embeds otherwise.
    """
    folder = _folder(index)
    if not (folder / _SUMS).exists():
        _write(model, folder, flip)
        return
    if embeds_flipped(index) != flip:
        raise ValueError(f"build: flip must be {not flip} as in the index {index}, got {flip}")
    kept, state = load_model(index), model.state_dict()
    same = _config(kept) == _config(model) and all(
        torch.equal(tensor, state[name].cpu()) for name, tensor in kept.state_dict().items()
    )
    if not same:
        raise ValueError(
            f"build: model must be the one in {folder}, which embedded what the index holds, got another; "
            "build a new index with it"
        )


def replace_model(model: Model, index: Path) -> None:
    """Write a model to ``<index>/model`` in the place of the one there, at once and whole."""
    place, new, old = index / "model", index / _NEW, index / "model.old"
    flip = embeds_flipped(index)
    if _folder(index) == new:
        new.rename(place)
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
    _write(model, new, flip)
    # Between the two a reader finds the new one where it is.
    place.rename(old)
    new.rename(place)
    shutil.rmtree(old)


def check_model(model: Model, index: Path) -> None:
    """Refuse a model of another kind, schema or preprocessing than the one in the index, where there is one.

    Its weights are not compared.
    """
    folder = _folder(index)
    if not (folder / checkpoint.CONFIG).exists():
        return
    kept = {key: value for key, value in checkpoint.read_config(folder).items() if key != _FLIP}
    if kept != _config(model):
        raise ValueError(
            f"search_image: model must have the configuration in {folder / checkpoint.CONFIG}, got another; "
            "leave it out to use the index's own"
        )


def embeds_flipped(index: Path) -> bool:
    """Whether the embeddings of an index are averaged over mirror images."""
    folder = _folder(index)
    return (folder / checkpoint.CONFIG).exists() and bool(checkpoint.read_config(folder).get(_FLIP))


def load_model(index: Path, device: str | torch.device = "cpu") -> Model:
    """Read the model of an index.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    folder = _folder(index)
    if not (folder / _SUMS).exists():
        raise FileNotFoundError(
            f"search_image: {index} must hold the model that it was built with, got no {_SUMS} in {folder}"
        )
    for problem in verify_model(index):
        raise ValueError(problem)
    return models.load(folder, device=device)


def verify_model(index: Path) -> list[str]:
    """Return what is wrong with the files of the model, a sentence each; nothing where there is no model."""
    folder = _folder(index)
    if not (folder / _SUMS).exists():
        return []
    said = (folder / _SUMS).read_bytes().splitlines(keepends=True)
    problems = []
    for number, name in enumerate(_FILES):
        found = _line(folder / name).encode() if (folder / name).is_file() else None
        if said[number : number + 1] != [found]:
            got = "no such file" if found is None else "another"
            problems.append(
                f"AttributeIndex: {folder / name} must have the checksum in {folder / _SUMS}, got {got}"
            )
    if len(said) > len(_FILES):
        problems.append(f"AttributeIndex: {folder / _SUMS} must have {len(_FILES)} lines, got {len(said)}")
    return problems


def _folder(index: Path) -> Path:
    """Return where the model is; a replacement that was cut short left the new one beside its place."""
    folder, new = index / "model", index / _NEW
    return new if not folder.exists() and (new / _SUMS).exists() else folder


def _write(model: Model, folder: Path, flip: bool) -> None:
    checkpoint.save(folder, model.state_dict(), {**model.config_dict(), _FLIP: flip})
    write_text(folder / _SUMS, "".join(map(_line, [folder / name for name in _FILES])))


def _config(model: Model) -> Any:
    """Return the configuration as ``checkpoint.read_config`` would."""
    return json.loads(json.dumps(model.config_dict()))


def _line(file: Path) -> str:
    """Return the file's line as ``sha256sum`` writes it."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(1 << 20):
            digest.update(part)
    return f"{digest.hexdigest()}  {os.path.basename(file)}\n"
