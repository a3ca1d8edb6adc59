"""Files that are whole or absent, and the folder of a run.

A kill or a full disk at any moment leaves the old content of a file or the new one, never a part: the new
content is written beside, synchronised to disk and renamed over the old. ``metrics.jsonl`` alone grows in
place; a line cut short by a kill is recognised when it is read and removed when writing goes on.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["RunFolder", "replacing", "sync_folder", "write_bytes", "write_json", "write_text"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file whose content takes the place of ``path`` when the block ends, at once and whole.

    If the block raises, ``path`` stays as it was and nothing is left beside it.

    Example::

        with replacing("embeddings.npy") as file:
            numpy.save(file, embeddings)
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        # A failed write does not say which file it was, a full disk for example.
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
    sync_folder(path.parent)


def write_bytes(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Replace a file by ``data``, at once and whole."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace a file by ``text`` in UTF-8, at once and whole."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Replace a file by ``value`` as indented JSON, at once and whole.

    NumPy and torch numbers and arrays are written as plain ones. Raises ValueError for NaN and infinities,
    for which JSON has no form.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError as error:
        raise ValueError(f"write_json: value for {os.fspath(path)} must be JSON, got {error}") from error
    write_text(path, text + "\n")


class RunFolder:
    """The folder ``runs/<name>`` of one training or evaluation.

    It holds ``config.yaml``, ``metrics.jsonl`` (one object a line), ``result.json`` and ``samples/`` beside
    what other parts write there (checkpoints, TensorBoard events).

    Args:
        path: the folder; made with its parents where it is absent.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"RunFolder: path must be a folder, got the file {self.path}")
        self.path.mkdir(parents=True, exist_ok=True)

    @property
    def config(self) -> Path:
        """Return where ``config.yaml`` is."""
        return self.path / "config.yaml"

    @property
    def result(self) -> Path:
        """Return where ``result.json`` is."""
        return self.path / "result.json"

    @property
    def skipped(self) -> Path:
        """Return where ``skipped.json`` is, in a run that had to replace images."""
        return self.path / "skipped.json"

    @property
    def samples(self) -> Path:
        """Return ``samples/``, made where it is absent."""
        folder = self.path / "samples"
        folder.mkdir(exist_ok=True)
        return folder

    def write_config(self, text: str) -> None:
        """Replace ``config.yaml``."""
        write_text(self.config, text)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Replace ``result.json``."""
        write_json(self.result, result)

    def write_skipped(self, causes: Mapping[str, str]) -> None:
        """Replace ``skipped.json``: why each image could not be read, by path."""
        write_json(self.skipped, causes)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``; it is there for other processes when this returns.

        Raises ValueError where a value is NaN or infinite.
        """
        try:
            line = json.dumps(dict(record), ensure_ascii=False, allow_nan=False, default=_plain)
        except ValueError as error:
            raise ValueError(f"append_metrics: record must be JSON, got {error} in {dict(record)}") from error
        # One write, so that a kill leaves at most one line without its end.
        with (self.path / "metrics.jsonl").open("ab", buffering=0) as file:
            file.write(line.encode() + b"\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl``; one that a kill cut short at the end is left out.

        Raises ValueError with file and line number where another line is not a JSON object.
        """
        return [record for record, _ in self._lines()]

    def keep_metrics(self, up_to_step: int) -> None:
        """Remove lines with a greater ``step`` and a line cut short, as a resumed run must before it writes.

        Without this the steps between the checkpoint and the kill would be there twice.
        """
        kept = [line for record, line in self._lines() if record.get("step", 0) <= up_to_step]
        write_bytes(self.path / "metrics.jsonl", b"".join(line + b"\n" for line in kept))

    def _lines(self) -> list[tuple[dict[str, Any], bytes]]:
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        *lines, _cut_short = path.read_bytes().split(b"\n")
        records = []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                start = line[:80].decode(errors="replace")
                raise ValueError(f"RunFolder: {path}:{number} must be a JSON object, got {start!r}")
            records.append((record, line))
        return records


def _plain(value: Any) -> Any:
    """Turn what ``json`` does not know into what it does: NumPy and torch values, and paths."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"write_json: value must be made of JSON's types, got {type(value).__name__}")


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; systems that cannot open a folder do it by themselves."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
