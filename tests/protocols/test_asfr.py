from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import plain_rankings as plain
import pytest
import torch
import torch.nn.functional as F

import placket
from placket.protocols import (
    PROTOCOLS,
    Result,
    asfr_map_all,
    asfr_multilabel,
    asfr_multilabel_class,
    embed_from,
    expected_average_precision,
    published,
)
from placket.schema import AttributeSchema

MANY = AttributeSchema.of({"neckline": list("abcdef"), "hem": list("abcdef")})
SCHEMA = AttributeSchema.of({"neckline": ["v", "round"], "hem": ["short", "long", "wide"], "fit": ["loose"]})


def by_hand() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images 0-2 ask, 3-6 are candidates; each embedding is a unit vector at an angle in degrees."""
    queries = np.array([[0, 0, 1], [1, 0, 0], [2, 1, 2]])
    candidates = np.array([[3, 0, 1], [4, 0, 0], [5, 0, 1], [6, 0, 0], [3, 1, 0], [4, 1, 1]])
    angles = np.radians([[0, 0], [0, 0], [0, 0], [30, 0], [10, 0], [20, 0], [10, 0]])
    return queries, candidates, np.stack([np.cos(angles), np.sin(angles)], 2).astype(np.float32)


def test_map_by_hand():
    queries, candidates, embeddings = by_hand()
    result = asfr_map_all(queries, candidates, embed_from(embeddings), SCHEMA, missing=7)
    # Both neckline queries rank 4, 6 (a tie, in list order), 5, 3; the hem query has no relevant candidate.
    first, second = (1 / 3 + 2 / 4) / 2, 1.0
    assert result.average_precision["neckline"].tolist() == pytest.approx([first, second])
    assert result.per_attribute == pytest.approx({"neckline": 50 * (first + second), "hem": 0.0})
    assert result.overall == pytest.approx(100 * (first + second) / 3)
    assert result.mean_of_attributes == pytest.approx(25 * (first + second))
    assert (result.queries, result.candidates) == ({"neckline": 2, "hem": 1}, {"neckline": 4, "hem": 2})
    assert (result.without_relevant, result.missing) == (1, 7)
    assert (result.protocol, result.version) == ("asfr-map-all/v1 subset", placket.__version__)
    assert result.similarity == "cosine"
    assert result.floor["hem"] == 0.0
    whole = asfr_map_all(queries, candidates, embed_from(embeddings), SCHEMA)
    assert PROTOCOLS[whole.protocol] is asfr_map_all


def test_dot_product_counts_lengths():
    queries, candidates, embeddings = by_hand()
    # Products 0.9 cos 30, 0.5 cos 10, cos 20, 0.2 cos 10 of candidates 3 to 6: the order is 5, 3, 4, 6.
    scaled = embeddings * np.array([2, 1, 1, 0.9, 0.5, 1, 0.2], np.float32)[:, None, None]
    result = asfr_map_all(queries, candidates, embed_from(scaled), SCHEMA, similarity="dot")
    assert result.average_precision["neckline"].tolist() == pytest.approx([1.0, (1 / 3 + 2 / 4) / 2])
    assert result.similarity == "dot"
    assert "asfr-map-all/v1, ranked by dot, per cent" in result.table()
    assert Result.from_dict(result.to_dict()) == result
    unit, cosine = (
        asfr_map_all(queries, candidates, embed_from(embeddings), SCHEMA, similarity=similarity)
        for similarity in ("dot", "cosine")
    )
    assert unit.per_attribute == cosine.per_attribute
    assert unit != cosine


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_dot_product_refuses_what_is_not_finite(bad: float):
    queries, candidates, embeddings = by_hand()
    embeddings[5, 0] = (bad, 0)
    with pytest.raises(ValueError, match=f"finite rows, got norm {bad} for image 5 and attribute 0"):
        asfr_map_all(queries, candidates, embed_from(embeddings), SCHEMA, similarity="dot")
    with pytest.raises(ValueError, match="similarity must be 'cosine' or 'dot', got 'euclidean'"):
        asfr_map_all(queries, candidates, embed_from(embeddings), SCHEMA, similarity="euclidean")


def test_embed_sees_each_list_once_and_no_value():
    queries, candidates, embeddings = by_hand()
    calls = []

    def embed(images: np.ndarray, attribute: int) -> torch.Tensor:
        calls.append((images.tolist(), attribute))
        return torch.from_numpy(embeddings[images, attribute])

    asfr_map_all(queries, candidates, embed, SCHEMA)
    assert calls == [([0, 1], 0), ([3, 4, 5, 6], 0), ([2], 1), ([3, 4], 1)]


def test_attribute_without_candidates_counts_as_zero():
    queries, candidates, embeddings = by_hand()
    result = asfr_map_all(queries, candidates[:4], embed_from(embeddings), SCHEMA)
    assert (result.per_attribute["hem"], result.candidates["hem"], result.without_relevant) == (0.0, 0, 1)


def expected_figures(scores: np.ndarray, relevant: np.ndarray) -> dict[str, float]:
    ranked = plain.ranked(scores.tolist(), relevant.tolist())
    total, found = plain.precision_sum(ranked, 100), sum(ranked[:100])
    every = sum(ranked)
    return {
        "MAP@all": plain.average_precision(ranked),
        "E[MAP@all]": plain.expected_average_precision(scores.tolist(), relevant.tolist()),
        "MAP@100": total / found if found else 0.0,
        "MAP@100/min(R,100)": total / min(every, 100) if every else 0.0,
        "MAP@100/R": total / every if every else 0.0,
        "Recall@100": found / every if every else 0.0,
    }


def test_map_matches_a_plain_loop():
    """Heavy ties, values that no candidate has, and more and less than 100 relevant candidates."""
    random = np.random.default_rng(3)
    rows = np.stack([np.arange(900), random.integers(2, size=900), random.integers(3, size=900)], 1)
    rows[:9, 2], rows[9:60, 2] = 3, 0
    embeddings = plain.exact_rows(900, 2)
    queries, candidates = rows[:60], rows[60:]
    result = asfr_map_all(queries, candidates, embed_from(embeddings), MANY)
    expected = {name: [] for name in result.metrics}
    for attribute, name in enumerate(MANY.names):
        offered = candidates[candidates[:, 1] == attribute]
        for image, _, wanted in queries[queries[:, 1] == attribute]:
            scores = embeddings[offered[:, 0], attribute] @ embeddings[image, attribute]
            for metric, value in expected_figures(scores.numpy(), offered[:, 2] == wanted).items():
                expected[metric].append(value)
        count = result.queries[name]
        for metric, found in result.metrics.items():
            assert found.values[name].tolist() == pytest.approx(expected[metric][-count:], abs=1e-12)
            assert found.per_group[name] == pytest.approx(100 * np.mean(expected[metric][-count:]))
    for metric, found in result.metrics.items():
        assert found.overall == pytest.approx(100 * np.mean(expected[metric]))
    assert result.without_relevant == 9
    assert 0 < result.metrics["MAP@100/R"].overall < result.metrics["MAP@100/min(R,100)"].overall
    assert result.metrics["MAP@100/min(R,100)"].overall < result.metrics["MAP@100"].overall


def test_multilabel_matches_a_plain_loop():
    random = np.random.default_rng(5)
    labels = np.unique(random.integers((0, 0, 0), (50, 2, 4), size=(160, 3)), axis=0)
    labels = np.concatenate([labels, [[50, 0, 5], [51, 1, 5]]])  # values of one image each
    embeddings = plain.exact_rows(52, 2)
    shuffled = random.permutation(np.concatenate([labels, labels[:20]]))
    result = asfr_multilabel(shuffled, embed_from(embeddings), MANY)
    carried = {(image, attribute, value) for image, attribute, value in labels.tolist()}
    without = 0
    for attribute, name in enumerate(MANY.names):
        images = sorted({i for i, a, _ in carried if a == attribute})
        asked = sorted((i, v) for i, a, v in carried if a == attribute)
        expected = {metric: [] for metric in result.metrics}
        for image, value in asked:
            others = [i for i in images if i != image]
            scores = embeddings[others, attribute] @ embeddings[image, attribute]
            relevant = np.array([(i, attribute, value) in carried for i in others])
            without += not relevant.any()
            for metric, figure in expected_figures(scores.numpy(), relevant).items():
                expected[metric].append(figure)
        assert (result.queries[name], result.candidates[name]) == (len(asked), len(images) - 1)
        for metric, found in result.metrics.items():
            assert found.values[name].tolist() == pytest.approx(expected[metric], abs=1e-12)
    assert result.without_relevant == without == 2
    assert (result.protocol, result.version) == ("asfr-multilabel/v1", placket.__version__)
    assert asfr_multilabel(labels, embed_from(embeddings), MANY) == result
    assert asfr_multilabel(labels[1:], embed_from(embeddings), MANY).lists != result.lists
    assert asfr_multilabel(labels, embed_from(embeddings), MANY, missing=2).protocol.endswith("/v1 subset")


@pytest.mark.parametrize("class_weight", [0.0, 0.5])
def test_multilabel_by_class_matches_a_plain_loop(class_weight: float):
    random = np.random.default_rng(6)
    labels = np.unique(random.integers((0, 0, 0), (40, 2, 4), size=(120, 3)), axis=0)
    labels = np.concatenate([labels, [[40, 0, 5], [41, 1, 5]]])  # values of one image each
    # Two attributes of six values are twelve spaces. Eighths: sums of products are exact in any order.
    spaces = plain.exact_rows(42, 12)
    probabilities = random.integers(0, 9, size=(42, 12)).astype(np.float32) / 8
    calls = []

    def embed(images: np.ndarray, attribute: int, value: int) -> tuple[np.ndarray, np.ndarray]:
        calls.append((attribute, value))
        own = 6 * attribute + value
        return spaces[images, own].numpy(), probabilities[images, own]

    shuffled = random.permutation(np.concatenate([labels, labels[:20]]))
    result = asfr_multilabel_class(shuffled, embed, MANY, class_weight=class_weight)
    carried = {(image, attribute, value) for image, attribute, value in labels.tolist()}
    assert calls == sorted({(a, v) for _, a, v in carried})
    for attribute, name in enumerate(MANY.names):
        images = sorted({i for i, a, _ in carried if a == attribute})
        asked = sorted((i, v) for i, a, v in carried if a == attribute)
        expected = {metric: [] for metric in result.metrics}
        for image, value in asked:
            own = 6 * attribute + value
            others = [i for i in images if i != image]
            scores = (spaces[others, own] @ spaces[image, own]).numpy()
            scores = scores + np.float32(class_weight) * probabilities[others, own]
            relevant = np.array([(i, attribute, value) in carried for i in others])
            for metric, figure in expected_figures(scores, relevant).items():
                expected[metric].append(figure)
        assert (result.queries[name], result.candidates[name]) == (len(asked), len(images) - 1)
        for metric, found in result.metrics.items():
            assert found.values[name].tolist() == pytest.approx(expected[metric], abs=1e-12)
    assert result.without_relevant == 2
    assert result.similarity == f"cosine by class + {class_weight:g} probability of the candidate"
    assert PROTOCOLS[result.protocol] is asfr_multilabel_class
    # The queries are those of the blind protocol, in its order.
    blind = asfr_multilabel(labels, embed_from(plain.exact_rows(42, 2)), MANY)
    assert (blind.queries, blind.candidates, blind.lists) == (result.queries, result.candidates, result.lists)


def test_multilabel_by_class_refuses_what_are_no_probabilities():
    def embed(images: np.ndarray, attribute: int, value: int) -> tuple[np.ndarray, np.ndarray]:
        return np.ones((len(images), 1), np.float32), given[: len(images)]

    given = np.array([0.5, 1.5])
    with pytest.raises(ValueError, match=r"probabilities from 0 to 1, got 1.5 for image 3, attribute 1"):
        asfr_multilabel_class([[2, 1, 0], [3, 1, 0]], embed, MANY)
    given = np.zeros((2, 1))
    with pytest.raises(ValueError, match=r"probabilities of shape \[2\], got \[2, 1\]"):
        asfr_multilabel_class([[2, 1, 0], [3, 1, 0]], embed, MANY)


def test_multilabel_embeds_an_image_once_and_sees_no_value():
    calls = []

    def embed(images: np.ndarray, attribute: int) -> np.ndarray:
        calls.append((images.tolist(), attribute))
        return np.ones((len(images), 1), np.float32)

    result = asfr_multilabel([[4, 1, 0], [2, 1, 0], [4, 1, 2], [7, 0, 1]], embed, MANY)
    assert calls == [([7], 0), ([2, 4], 1)]
    # Nothing can be found for image 7, alone in its attribute, and for the value that only image 4 has.
    assert result.without_relevant == 2
    assert result.metrics["MAP@all"].values["hem"].tolist() == [1.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="asfr_multilabel: labels must hold at least one row, got none"):
        asfr_multilabel(np.zeros((0, 3), int), embed, MANY)


@pytest.mark.parametrize(
    ("queries", "candidates", "message"),
    [
        (np.zeros((0, 3), int), np.zeros((1, 3), int), "queries must hold at least one row, got none"),
        ([[0, 0]], [[0, 0, 0]], r"queries must be integers of shape \[n, 3\] .* got int64 \[1, 2\]"),
        ([[0, 0, 0]], [[0.5, 0, 0]], r"candidates must be integers .* got float64"),
        ([[0, 0, 0], [0, 3, 0]], [[0, 0, 0]], r"attributes of queries must be in \[0, 3\), got 3 in row 1"),
    ],
)
def test_list_errors(queries, candidates, message):
    with pytest.raises(ValueError, match="asfr_map_all: " + message):
        asfr_map_all(queries, candidates, embed_from(np.ones((1, 3, 1))), SCHEMA)


@pytest.mark.parametrize("bad", [3.2, float("nan")])
def test_embeddings_that_are_not_normalised_are_refused(bad: float):
    queries, candidates, embeddings = by_hand()
    embeddings[5, 0] = (bad, 0)
    with pytest.raises(
        ValueError, match=rf"L2-normalised rows, got norm {bad:.4g} for image 5 and attribute 0"
    ):
        asfr_map_all(queries, candidates, embed_from(embeddings), SCHEMA)
    with pytest.raises(ValueError, match=r"embed must return shape \[2, D\], got \[2\]"):
        asfr_map_all(queries, candidates, lambda images, _: np.ones(len(images)), SCHEMA)
    with pytest.raises(ValueError, match=r"embeddings must have shape \[N, A, D\], got \[4, 2\]"):
        embed_from(np.ones((4, 2)))


@pytest.mark.parametrize(("relevant", "candidates"), [(1, 1), (1, 2), (2, 2), (2, 5), (3, 6)])
def test_floor_is_the_mean_over_all_orders(relevant: int, candidates: int):
    from itertools import combinations

    values = []
    for ranks in combinations(range(1, candidates + 1), relevant):
        values.append(sum((i + 1) / rank for i, rank in enumerate(ranks)) / relevant)
    assert expected_average_precision([relevant, 0], candidates).tolist() == pytest.approx(
        [np.mean(values), 0.0]
    )


def test_floor_errors():
    with pytest.raises(ValueError, match=r"relevant must be in \[0, 3\], got 4"):
        expected_average_precision([1, 4], 3)


# systems.md 1.3 and 1.4: counts, ceilings and one simulation of random rankings on the published test lists.
PUBLISHED = {
    "FashionAI": ([422, 623, 535, 422, 341, 289, 703, 265], 14_400, 0, 15.78, 100.0, 37.36),
    "DARN": ([476, 448, 491, 448, 463, 533, 509, 483, 442], 17_168, 3, 31.27, 99.93, 41.78),
    "DeepFashion": ([1008, 1483, 1097, 1022, 915], 22_100, 23, 3.39, 99.58, 77.26),
}
FLOORS = {
    "FashionAI": [17.15, 12.48, 13.31, 17.50, 22.36, 21.57, 11.06, 21.33],
    "DARN": [5.53, 23.52, 10.58, 29.83, 43.31, 38.80, 15.19, 61.98, 54.59],
    "DeepFashion": [6.69, 2.70, 3.25, 2.56, 2.00],
}


@pytest.mark.data
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_lists(name: str, photographs: Path):
    folder = photographs / "asfr-splits" / name
    meta = json.loads((folder.parent / "meta.json").read_text())[name]["ATTRIBUTES_NUM"]
    schema = AttributeSchema.of({a: [str(v) for v in range(n)] for a, n in meta.items()})
    queries, candidates = (
        np.loadtxt(folder / f"{kind}_test.txt", dtype=np.int64) for kind in ("query", "candidate")
    )
    counts, length, unanswered, floor, ceiling, recall = PUBLISHED[name]
    value_of = np.zeros(1 + max(queries[:, 0].max(), candidates[:, 0].max()), dtype=np.int64)
    value_of[queries[:, 0]], value_of[candidates[:, 0]] = queries[:, 2], candidates[:, 2]

    def oracle(images: np.ndarray, attribute: int) -> torch.Tensor:
        return F.one_hot(torch.from_numpy(value_of[images]), max(meta.values())).float()

    result = asfr_map_all(queries, candidates, oracle, schema)
    assert list(result.queries.values()) == counts
    assert sum(result.candidates.values()) == length
    assert result.without_relevant == unanswered
    assert result.overall == pytest.approx(ceiling, abs=0.005)
    # The figures to compare with are one simulation each, good to about a tenth.
    assert list(result.floor.values()) == pytest.approx(FLOORS[name], abs=0.15)
    assert result.floor_overall == pytest.approx(floor, abs=0.05)
    assert result.metrics["Recall@100"].overall == pytest.approx(recall, abs=0.005)
    # What nobody can retrieve is no fault of the first 100.
    assert result.metrics["MAP@100"].overall == pytest.approx(ceiling, abs=0.005)
    block = next(block for block in published() if block.matches(result))
    assert (block.data, block.lists) == (name, result.lists)


@pytest.mark.data
def test_equal_scores_are_expected_to_reach_chance(photographs: Path):
    folder = photographs / "asfr-splits" / "FashionAI"
    lists = (np.loadtxt(folder / f"{kind}_test.txt", dtype=np.int64) for kind in ("query", "candidate"))
    schema = AttributeSchema.of({str(a): ["any"] for a in range(8)})
    result = asfr_map_all(*lists, embed_from(np.ones((18_000, 8, 1), np.float32)), schema)
    assert result.metrics["E[MAP@all]"].per_group == pytest.approx(result.floor, abs=1e-9)


# systems.md 1.5: query counts and chance of the multi-label protocol on DeepFashion's test images.
@pytest.mark.data
@pytest.mark.slow
def test_multilabel_chance_on_deepfashion(photographs: Path):
    rows = []
    for line in (photographs / "asfr-splits" / "DeepFashion" / "label_test.txt").read_text().splitlines():
        image, *rest = map(int, line.split())
        rows += [(image, a - 1, v) for a, v in zip(rest[::2], rest[1::2], strict=True)]
    schema = AttributeSchema.of({name: ["any"] for name in ("texture", "fabric", "shape", "part", "style")})
    embeddings = F.normalize(torch.randn(1 + max(row[0] for row in rows), 5, 8), dim=2)
    result = asfr_multilabel(rows, embed_from(embeddings), schema)
    assert list(result.queries.values()) == [19037, 26464, 18387, 17272, 14731]
    # The figures to compare with are one simulation each.
    assert list(result.floor.values()) == pytest.approx([11.51, 4.28, 4.16, 3.99, 2.43], abs=0.1)
    assert result.per_attribute == pytest.approx(result.floor, abs=0.1)


def test_embeddings_may_be_on_any_device(device: torch.device):
    labels = np.stack([np.arange(60), np.arange(60) % 2, np.arange(60) % 3], axis=1)
    rows = plain.exact_rows(60, 2)
    here, there = (
        [
            asfr_multilabel(labels, embed_from(embeddings), MANY),
            asfr_map_all(labels[:20], labels[20:], embed_from(embeddings), MANY),
        ]
        for embeddings in (rows, rows.to(device))
    )
    assert here == there
