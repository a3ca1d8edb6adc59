from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from placket.rerank import attribute_rerank, k_reciprocal, query_expansion


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(shape), dim=-1)


def literal_k_reciprocal(
    queries: np.ndarray, candidates: np.ndarray, k1: int, k2: int, weight: float
) -> np.ndarray:
    """Zhong et al. 2017, set by set."""
    every = np.concatenate([queries, candidates])
    n = len(every)
    d = 1 - every @ every.T

    def neighbours(p: int, k: int) -> list[int]:
        others = sorted((i for i in range(n) if i != p), key=lambda i: (d[p, i], i))
        return [p, *others[:k]]

    def reciprocal(p: int, k: int) -> set[int]:
        return {g for g in neighbours(p, k) if p in neighbours(g, k)}

    encodings = np.zeros((n, n))
    for p in range(n):
        first = reciprocal(p, k1)
        expanded = set(first)
        for q in first:
            half = reciprocal(q, k1 // 2)
            if len(first & half) >= 2 / 3 * len(half):
                expanded |= half
        for g in expanded:
            encodings[p, g] = np.exp(-d[p, g])
    means = np.stack([encodings[neighbours(p, k2 - 1)].mean(axis=0) for p in range(n)])
    scores = np.zeros((len(queries), len(candidates)))
    for q in range(len(queries)):
        for c in range(len(candidates)):
            a, b = means[q], means[len(queries) + c]
            jaccard = 1 - np.minimum(a, b).sum() / np.maximum(a, b).sum()
            scores[q, c] = -((1 - weight) * jaccard + weight * d[q, len(queries) + c])
    return scores


@pytest.mark.parametrize(("k1", "k2", "weight"), [(6, 3, 0.3), (7, 1, 0.0), (3, 4, 0.5), (40, 2, 0.2)])
def test_k_reciprocal_is_what_the_paper_says(k1: int, k2: int, weight: float):
    centres = unit(4, 8)
    queries, candidates = (
        F.normalize(centres[torch.arange(n) % 4] + 0.5 * unit(n, 8), dim=1) for n in (5, 26)
    )
    found = k_reciprocal(queries, candidates, k1=k1, k2=k2, weight=weight)
    expected = literal_k_reciprocal(queries.double().numpy(), candidates.double().numpy(), k1, k2, weight)
    assert found.dtype == torch.float32
    # The encodings are of float32 cosines.
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6, rtol=0)


def test_k_reciprocal_with_equal_images():
    queries, candidates = unit(2, 8), unit(9, 8)
    candidates[5:] = queries[0]
    found = k_reciprocal(queries, candidates, k1=3, k2=2)
    exact = literal_k_reciprocal(queries.numpy(), candidates.numpy(), 3, 2, 0.3)
    assert found[0].argmax().item() >= 5
    assert exact[0].argmax() >= 5


def test_k_reciprocal_takes_a_query_among_the_candidates_once():
    centres = unit(4, 8)
    every = F.normalize(centres[torch.arange(30) % 4] + 0.5 * unit(30, 8), dim=1)
    fresh, candidates = every[:3], every[3:]
    own = [5, 20]
    found = k_reciprocal(torch.cat([fresh, candidates[own]]), candidates, k1=6, k2=3, same=[-1, -1, -1, *own])
    others = [c for c in range(27) if c not in own]
    exact = literal_k_reciprocal(
        torch.cat([fresh, candidates[own]]).double().numpy(), candidates[others].double().numpy(), 6, 3, 0.3
    )
    np.testing.assert_allclose(found[:, others].numpy(), exact, atol=2e-6, rtol=0)
    assert found[3].argmax().item() == 5
    twice = k_reciprocal(torch.cat([fresh, candidates[own]]), candidates, k1=6, k2=3)
    assert not torch.allclose(twice, found, atol=1e-3)


def test_k_reciprocal_helps_where_neighbours_agree():
    """Queries from the edge of a cluster: its own images agree on their neighbours, a stray one does not."""
    centres = unit(10, 16)
    labels = torch.arange(200) % 10
    candidates = F.normalize(centres[labels] + 1.1 * unit(200, 16), dim=1)
    queries = F.normalize(centres + 1.1 * unit(10, 16), dim=1)

    def mean_hits(scores: torch.Tensor) -> float:
        first = scores.argsort(dim=1, descending=True)[:, :20]
        return (labels[first] == torch.arange(10)[:, None]).float().mean().item()

    assert (
        mean_hits(k_reciprocal(queries, candidates, k1=12, k2=4)) > mean_hits(queries @ candidates.T) + 0.05
    )


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_query_expansion_matches_a_plain_loop(alpha: float):
    queries, candidates = unit(6, 8), unit(30, 8)
    found = query_expansion(queries, candidates, k=4, alpha=alpha)
    for q in range(6):
        cosines = candidates @ queries[q]
        total = queries[q].clone()
        for c in cosines.argsort(descending=True)[:4]:
            total += max(cosines[c].item(), 0.0) ** alpha * candidates[c]
        torch.testing.assert_close(found[q], total / total.norm())


def test_query_expansion_does_not_add_the_query_itself():
    candidates = unit(12, 8)
    candidates[9] = candidates[3]  # equal to a query, and another image
    queries = torch.cat([candidates[[3, 9]], unit(1, 8)])
    found = query_expansion(queries, candidates, k=4, same=[3, 9, -1])
    for q, own in enumerate([3, 9, None]):
        others = [c for c in range(12) if c != own]
        torch.testing.assert_close(found[q], query_expansion(queries[q : q + 1], candidates[others], k=4)[0])


def test_a_candidate_opposite_adds_nothing_with_alpha():
    queries = torch.tensor([[1.0, 0.0]])
    assert torch.equal(query_expansion(queries, -queries, k=1, alpha=2.0), queries)


def test_attribute_rerank_matches_a_plain_loop():
    spaces = ("neckline", "hem", "fit")
    queries, candidates = ({name: unit(n, 8) for name in spaces} for n in (5, 40))
    weights = {"neckline": 0.5, "hem": 2.0}
    scores, rows = attribute_rerank(queries, candidates, "fit", weights, k=10)
    for q in range(5):
        first = (candidates["fit"] @ queries["fit"][q]).argsort(descending=True)[:10].tolist()
        by = {
            c: sum(w * (candidates[s][c] @ queries[s][q]).item() for s, w in weights.items()) for c in first
        }
        assert rows[q].tolist() == sorted(first, key=by.__getitem__, reverse=True)
        assert scores[q].tolist() == pytest.approx(sorted(by.values(), reverse=True), abs=1e-6)


def test_equal_sums_keep_the_first_order():
    queries = {"a": torch.eye(2)[:1], "b": torch.eye(2)[:1]}
    angles = torch.tensor([0.3, 0.1, 0.2])
    candidates = {
        "a": torch.stack([angles.cos(), angles.sin()], 1),
        "b": torch.eye(2)[:1].expand(3, 2),
    }
    assert attribute_rerank(queries, candidates, "a", {"b": 1.0}, k=3)[1].tolist() == [[1, 2, 0]]


def test_errors():
    q, c = unit(2, 4), unit(5, 4)
    for call, message in [
        (
            lambda: k_reciprocal(q, c * 2),
            "candidates must have L2-normalised rows .* got 5 rows that are not",
        ),
        (lambda: k_reciprocal(q[0], c), r"queries must have L2-normalised rows \[n, D\], got shape \[4\]"),
        (lambda: k_reciprocal(q, c, k1=2, k2=4), "k2 from 1 to k1 \\+ 1, got 2 and 4"),
        (lambda: k_reciprocal(q, c, weight=2), "weight must be from 0 to 1, got 2"),
        (lambda: query_expansion(q, c, k=6), "k must be from 1 to 5, got 6"),
        (lambda: query_expansion(q, c, k=5, same=[-1, 2]), "k must be from 1 to 4, got 5"),
        (
            lambda: query_expansion(q, c, same=[-1, 5]),
            r"same must have shape \[2\] and values from -1 to 4, got shape \[2\] and -1 to 5",
        ),
        (lambda: k_reciprocal(q, c, same=[0]), r"same must have shape \[2\] .*, got shape \[1\]"),
        (lambda: query_expansion(q, c, alpha=-1), "alpha must be at least 0, got -1"),
        (lambda: attribute_rerank({"a": q}, {"a": c}, "b", {"a": 1}), "space must be one of a, got 'b'"),
        (lambda: attribute_rerank({"a": q}, {"a": c}, "a", {}), "weights must name at least one space"),
        (lambda: attribute_rerank({"a": q}, {"a": c}, "a", {"a": 1}, k=9), "k must be from 1 to 5, got 9"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
