"""The bench: every method on the same data with the same trunk, for the same time, beside simple rivals.

from placket import scores

print(scores.run("runs/scores").tables())  # or: placket scores, make scores
"""

from __future__ import annotations

from placket.scores.bench import run
from placket.scores.results import DataScores, Row, RowDifference, Scores
from placket.scores.settings import SETTINGS, TITLES, Bench, Entry, Setting, entries, small_config
from placket.scores.training import Record

__all__ = [
    "SETTINGS",
    "TITLES",
    "Bench",
    "DataScores",
    "Entry",
    "Record",
    "Row",
    "RowDifference",
    "Scores",
    "Setting",
    "entries",
    "run",
    "small_config",
]
