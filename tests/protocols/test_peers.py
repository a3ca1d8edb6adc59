"""Our figures and those of torchmetrics and pytorch-metric-learning: where they are equal, and where not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from placket.protocols import Photos, Result, asfr_map_all, embed_from, inshop_recall
from placket.schema import AttributeSchema

QUERIES, CANDIDATES, CLASSES = 40, 160, 12
SCHEMA = AttributeSchema.of({"any": [str(v) for v in range(CLASSES)]})


def lists(unanswered: bool) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    rows = np.zeros((QUERIES + CANDIDATES, 3), dtype=np.int64)
    rows[:, 0] = np.arange(len(rows))
    rows[:, 2] = random.integers(CLASSES - 1, size=len(rows))
    if unanswered:
        rows[:7, 2] = CLASSES - 1
    return rows[:QUERIES], rows[QUERIES:]


def rows_of(positive: bool) -> torch.Tensor:
    """Rows without equal scores; with positive scores only, or of both signs."""
    rows = torch.randn(QUERIES + CANDIDATES, 16)
    return torch.nn.functional.normalize(rows.abs() if positive else rows, dim=1)


def ours(unanswered: bool, rows: torch.Tensor) -> Result:
    return asfr_map_all(*lists(unanswered), embed_from(rows[:, None]), SCHEMA)


def torchmetrics_of(name: str, unanswered: bool, rows: torch.Tensor, **options: object) -> float:
    retrieval = pytest.importorskip("torchmetrics.retrieval")
    queries, candidates = lists(unanswered)
    scores = rows[:QUERIES] @ rows[QUERIES:].T
    target = torch.from_numpy(queries[:, None, 2] == candidates[None, :, 2])
    indexes = torch.arange(QUERIES)[:, None].expand_as(target)
    return 100 * getattr(retrieval, name)(**options)(scores, target, indexes=indexes).item()


@pytest.mark.parametrize("unanswered", [False, True])
@pytest.mark.parametrize(
    ("metric", "name", "options"),
    [
        ("MAP@all", "RetrievalMAP", {}),
        ("MAP@100", "RetrievalMAP", {"top_k": 100}),
        ("Recall@100", "RetrievalRecall", {"top_k": 100}),
    ],
)
def test_torchmetrics_is_equal_for_positive_scores(
    metric: str, name: str, options: dict[str, object], unanswered: bool
):
    """Its MAP@k divides by the relevant candidates that were retrieved, and no answer counts as 0."""
    rows = rows_of(positive=True)
    theirs = torchmetrics_of(name, unanswered, rows, **options)
    assert ours(unanswered, rows).metrics[metric].overall == pytest.approx(theirs, abs=1e-4)


def test_torchmetrics_holds_negative_scores_to_be_irrelevant():
    """Of cosines, half are below 0: relevant candidates there are not counted at all."""
    rows = rows_of(positive=False)
    theirs = torchmetrics_of("RetrievalMAP", False, rows)
    assert theirs > ours(False, rows).overall + 1
    scores = rows[:QUERIES] @ rows[QUERIES:].T
    queries, candidates = lists(False)
    expected = []
    for q in range(QUERIES):
        order = (-scores[q]).argsort().numpy()
        relevant = (candidates[order, 2] == queries[q, 2]) & (scores[q, order].numpy() > 0)
        ranks = np.flatnonzero(relevant) + 1
        expected.append(np.mean(np.arange(1, len(ranks) + 1) / ranks) if len(ranks) else 0.0)
    assert theirs == pytest.approx(100 * np.mean(expected), abs=1e-4)


def pml_of(metric: str, unanswered: bool, rows: torch.Tensor, k: int | str) -> float:
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    def nearest(query: torch.Tensor, k: int, reference: torch.Tensor, *_: object) -> tuple:
        return (query @ reference.T).topk(k)

    queries, candidates = lists(unanswered)
    calculator = AccuracyCalculator(include=(metric,), k=k, knn_func=nearest, device=torch.device("cpu"))
    found = calculator.get_accuracy(
        rows[:QUERIES],
        torch.from_numpy(queries[:, 2]),
        rows[QUERIES:],
        torch.from_numpy(candidates[:, 2]),
        ref_includes_query=False,
    )
    return 100 * found[metric]


def test_pytorch_metric_learning_is_equal_where_every_query_has_an_answer():
    rows = rows_of(positive=False)
    result = ours(False, rows)
    every = pml_of("mean_average_precision", False, rows, CANDIDATES)
    assert result.metrics["MAP@all"].overall == pytest.approx(every, abs=1e-6)
    first = pml_of("mean_average_precision", False, rows, 100)
    assert result.metrics["MAP@100/R"].overall == pytest.approx(first, abs=1e-6)


def test_pytorch_metric_learning_leaves_unanswered_queries_out():
    rows = rows_of(positive=False)
    result = ours(True, rows)
    assert result.without_relevant == 7
    theirs = pml_of("mean_average_precision", True, rows, CANDIDATES)
    assert theirs == pytest.approx(result.overall * QUERIES / (QUERIES - 7), abs=1e-6)


def test_precision_at_1_is_recall_at_1():
    queries, candidates = lists(False)
    rows = rows_of(positive=False)
    photos = (Photos(part[:, 0], part[:, 2]) for part in (queries, candidates))
    result = inshop_recall(*photos, rows[:QUERIES], rows[QUERIES:])
    assert result.overall == pytest.approx(pml_of("precision_at_1", False, rows, 1), abs=1e-6)
    hits = torchmetrics_of("RetrievalHitRate", False, rows, top_k=10)
    assert result.metrics["Recall@10"].overall == pytest.approx(hits, abs=1e-4)
