"""The bench: every method on the same data with the same trunk, for the same time, beside simple rivals.

scores = placket.scores.run("runs/scores")  # or: placket scores, make scores
print(scores.tables())
"""

from __future__ import annotations

from placket.scores.bench import entries, run
from placket.scores.results import DataScores, Row, RowDifference, Scores
from placket.scores.settings import ENTRIES, SETTINGS, Bench, Entry, Setting, small_config
from placket.scores.training import Record

__all__ = [
    "ENTRIES",
    "SETTINGS",
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
