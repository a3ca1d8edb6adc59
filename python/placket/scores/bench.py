"""The bench: every method on the same data with the same trunk, for the same time, beside simple rivals."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from placket import __version__
from placket.config import TrainConfig
from placket.data import Dataset, garments
from placket.data import open as open_data
from placket.runs import write_json
from placket.scores.results import DataScores, Row, Scores
from placket.scores.settings import SETTINGS, Bench, Entry, Setting, entries, small_config
from placket.scores.training import Record, fit_epochs, fit_steps, run_method, run_rivals

__all__ = ["run"]


def run(
    out: str | os.PathLike[str],
    setting: str | Setting = "minutes",
    *,
    data: str | os.PathLike[str] | None = None,
    methods: Sequence[str] | None = None,
    seeds: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Scores:
    """Train and rank every method and rival, and write what was found.

    A run that was stopped goes on: each training is a folder, and those that are finished are read, not
    repeated. How many epochs fit the time is measured once for each method and kept in the folder; with
    that, a seed gives the same weights again on a CPU.

    Args:
        out: holds a folder for each data set and the files of ``Scores.write`` afterwards.
        setting: a name in ``SETTINGS``, or a setting.
        data: the photographs, for a setting that has some; ``$PLACKET_DATA/deepfashion-fine6`` by default,
            and left out where that is not there, if the setting has other data too.
        methods: keys of the entries that take part; those of the setting by default.
        seeds: of every entry, instead of the setting's.
        say: told before each step.

    Raises:
        ValueError: there is no such setting or method, no data, or nothing to do with ``data``.
        FileExistsError: the folder holds scores of other settings.
    """
    if isinstance(setting, str) and setting not in SETTINGS:
        raise ValueError(f"scores: setting must be one of {', '.join(SETTINGS)}, got '{setting}'")
    name, chosen = (setting, SETTINGS[setting]) if isinstance(setting, str) else ("custom", setting)
    if seeds is not None and seeds < 1:
        raise ValueError(f"scores: seeds must be at least 1, got {seeds}")
    if data is not None and all(bench.items for bench in chosen.benches):
        raise ValueError(f"scores: data must be left out with setting '{name}', got {os.fspath(data)}")
    folder, tables = Path(out), []
    for bench in chosen.benches:
        opened = _open(bench, folder, data)
        if opened is None:
            say(f"{bench.name}: left out, no photographs; set PLACKET_DATA or give --data")
            continue
        trainings = _Trainings(bench, opened, folder / bench.name, say)
        rows = [
            Row.of([trainings.method(entry, seed) for seed in range(count)], is_rival=False)
            for entry, count in _chosen(bench, chosen, methods, seeds)
        ]
        every = range(seeds or chosen.seeds)
        rivals = zip(*(trainings.rivals(seed) for seed in every), strict=True)
        rows += [Row.of(records, is_rival=True) for records in rivals]
        tables.append(DataScores.of(bench.name, trainings.settings, rows))
    if not tables:
        raise ValueError(
            f"scores: data must be photographs for setting '{name}', got none; set PLACKET_DATA or "
            "give --data"
        )
    scores = Scores(name, seeds or chosen.seeds, _made(), tables)
    scores.write(folder)
    return scores


def _chosen(
    bench: Bench, setting: Setting, methods: Sequence[str] | None, seeds: int | None
) -> list[tuple[Entry, int]]:
    """Return the entries that take part, and with how many seeds."""
    offered = {entry.key: entry for entry in entries(bench)}
    for key in methods or ():
        if key not in offered:
            raise ValueError(f"scores: methods must be among {', '.join(offered)}, got '{key}'")
    if methods is not None:
        return [(offered[key], seeds or setting.seeds) for key in methods]
    counts = [(entry, setting.seeds_of(entry)) for entry in offered.values()]
    return [(entry, seeds or count) for entry, count in counts if count]


def _open(bench: Bench, folder: Path, data: str | os.PathLike[str] | None) -> Dataset | None:
    """Return the data set, drawn where it is garments; None where there are no photographs."""
    if bench.items:
        root = folder / bench.name / "garments"
        if not root.exists():
            garments.generate(root, items=bench.items)
        return open_data(root)
    if data is not None:
        return open_data(data)
    found = Path(os.environ.get("PLACKET_DATA", "")) / bench.name
    return open_data(found) if "PLACKET_DATA" in os.environ and found.is_dir() else None


class _Trainings:
    """The trainings on one data set, each in a folder of its own, which keeps what it gave."""

    def __init__(self, bench: Bench, data: Dataset, folder: Path, say: Callable[[str], None]) -> None:
        self._bench, self._data, self._folder, self._say = bench, data, folder, say
        self.settings: dict[str, Any] = json.loads(json.dumps({"placket": __version__, **asdict(bench)}))
        if self._kept("settings.json", lambda: self.settings) != self.settings:
            raise FileExistsError(
                f"scores: out must be a new folder or hold scores of the same settings, got {folder} "
                "with others; name another, or remove it"
            )

    def method(self, entry: Entry, seed: int) -> Record:
        """Return what a method gave with a seed."""

        def config(epochs: Sequence[int] | None) -> TrainConfig:
            return small_config(entry, self._bench, self._data, seed, epochs)

        def train(folder: Path) -> list[Record]:
            seconds = self._bench.seconds
            epochs = self._kept(
                f"{entry.key}-epochs.json", lambda: fit_epochs(config(None), self._data, seconds)
            )
            return [run_method(config(epochs), entry.title, self._bench, self._data, folder)]

        return self._recorded(f"{entry.key}-{seed}", train)[0]

    def rivals(self, seed: int) -> list[Record]:
        """Return what the rivals gave with a seed."""

        def train(folder: Path) -> list[Record]:
            bench = self._bench
            steps = self._kept("classifier-steps.json", lambda: fit_steps(bench, self._data, bench.seconds))
            return run_rivals(bench, self._data, seed, steps)

        return self._recorded(f"rivals-{seed}", train)

    def _recorded(self, name: str, train: Callable[[Path], list[Record]]) -> list[Record]:
        """Return what a finished training gave, or train; one that was stopped begins again."""
        folder = self._folder / name
        record = folder / "record.json"
        if not record.exists():
            self._say(f"{self._bench.name}: {name}")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_json(record, [found.to_dict() for found in train(folder)])
        return [Record.from_dict(found) for found in json.loads(record.read_text(encoding="utf-8"))]

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what a file holds, made and written where it is absent."""
        file = self._folder / name
        if not file.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(file, make())
        return json.loads(file.read_text(encoding="utf-8"))


def _made() -> dict[str, str]:
    return {
        "placket": __version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
    }
