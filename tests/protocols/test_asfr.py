from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import placket
from placket.protocols import (
    PROTOCOLS,
    Result,
    asfr_map_all,
    attention_peaks,
    bootstrap_interval,
    embed_from,
    expected_average_precision,
    input_window,
    pointing,
)
from placket.schema import AttributeSchema

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
    assert (result.protocol, result.version) == ("asfr-map-all/v1", placket.__version__)
    assert result.similarity == "cosine"
    assert result.floor["hem"] == 0.0
    assert PROTOCOLS[result.protocol] is asfr_map_all


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


def test_map_matches_a_plain_loop():
    random = np.random.default_rng(3)
    rows = np.stack([np.arange(400), random.integers(2, size=400), random.integers(3, size=400)], 1)
    # Unit rows whose products are exact in any order of summation, with many ties.
    embeddings = torch.randint(2, (400, 2, 4)) - 0.5
    result = asfr_map_all(rows[:80], rows[80:], embed_from(embeddings), SCHEMA)
    every = []
    for attribute, name in enumerate(SCHEMA.names[:2]):
        values = []
        offered = rows[80:][rows[80:, 1] == attribute]
        for image, _, wanted in rows[:80][rows[:80, 1] == attribute]:
            scores = embeddings[offered[:, 0], attribute] @ embeddings[image, attribute]
            order = np.lexsort((np.arange(len(offered)), -scores.numpy()))
            relevant = offered[order, 2] == wanted
            precision = np.cumsum(relevant) / np.arange(1, len(offered) + 1)
            values.append(precision[relevant].mean() if relevant.any() else 0.0)
        assert result.per_attribute[name] == pytest.approx(100 * np.mean(values))
        every += values
    assert result.overall == pytest.approx(100 * np.mean(every))


def test_result_is_saved_whole_and_read_back(tmp_path: Path):
    queries, candidates, embeddings = by_hand()
    result = asfr_map_all(queries, candidates, embed_from(embeddings), SCHEMA)
    result.save(tmp_path / "result.json")
    data = json.loads((tmp_path / "result.json").read_text())
    assert data == json.loads(result.to_json())
    assert "average_precision" not in data
    assert Result.from_dict(data) == result
    again = asfr_map_all(queries, candidates, embed_from(torch.from_numpy(embeddings)), SCHEMA)
    assert again == result
    assert asfr_map_all(queries, candidates[::-1], embed_from(embeddings), SCHEMA).lists != result.lists


def test_table_is_aligned():
    queries, candidates, embeddings = by_hand()
    result = asfr_map_all(queries, candidates, embed_from(embeddings), SCHEMA)
    *lines, footer = result.table().split("\n")
    assert len({len(line) for line in lines}) == 1
    assert [line.split("  ")[0] for line in lines] == [
        "attribute",
        "neckline",
        "hem",
        "overall",
        "mean of attributes",
    ]
    assert f"{result.overall:.2f}" in lines[3]
    assert footer.startswith("asfr-map-all/v1, ranked by cosine, per cent; ")
    assert "; 1 queries without a relevant candidate, 0 images missing; lists " in footer
    assert [row["map"] for row in result.as_dicts()][2:] == [result.overall, result.mean_of_attributes]


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
    "FashionAI": ([422, 623, 535, 422, 341, 289, 703, 265], 14_400, 0, 15.78, 100.0),
    "DARN": ([476, 448, 491, 448, 463, 533, 509, 483, 442], 17_168, 3, 31.27, 99.93),
    "DeepFashion": ([1008, 1483, 1097, 1022, 915], 22_100, 23, 3.39, 99.58),
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
    counts, length, unanswered, floor, ceiling = PUBLISHED[name]
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
    if name == "FashionAI":  # the overall of RPF's published row is weighted by queries
        rpf = [66.75, 67.86, 59.65, 73.23, 75.72, 73.18, 74.40, 75.01]
        assert np.average(rpf, weights=list(result.queries.values())) == pytest.approx(70.11, abs=0.005)


def test_interval_covers_the_true_mean():
    random = np.random.default_rng(0)
    hits = 0
    for trial in range(150):
        low, high = bootstrap_interval(random.beta(0.6, 0.4, size=80), resamples=300, seed=trial)
        hits += low <= 0.6 <= high
    # 95 % of 150 is 142, standard deviation 2.7; the percentile interval of 80 values is a little short.
    assert 133 <= hits <= 149


def test_interval_properties():
    values = np.random.default_rng(1).random(500)
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    assert (low, high) != bootstrap_interval(values, seed=1)
    # The normal approximation: 1.96 standard errors on each side.
    error = 1.96 * values.std() / np.sqrt(500)
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.1 * error)
    assert bootstrap_interval([0.25]) == (0.25, 0.25)
    with pytest.raises(ValueError, match=r"values must have shape \[n\] with n >= 1, got \[0\]"):
        bootstrap_interval([])


def test_attention_peaks():
    maps = torch.zeros(4, 2, 4)
    maps[0, 1, 3] = 1
    maps[1, 0, 1] = maps[1, 1, 0] = 1  # the first of two
    maps[2] = -1
    maps[2, 0, 0] = -0.5
    peaks = attention_peaks(maps)
    assert peaks[:3].tolist() == [[0.875, 0.75], [0.375, 0.25], [0.125, 0.25]]
    assert np.isnan(peaks[3]).all()
    assert attention_peaks(torch.zeros(0, 7, 7)).shape == (0, 2)
    with pytest.raises(ValueError, match="attention must be numbers, got NaN"):
        attention_peaks(maps.log())
    with pytest.raises(ValueError, match=r"attention must have shape \[n, h, w\], got \[4, 2\]"):
        attention_peaks(maps[..., 0])


@pytest.mark.parametrize(
    ("width", "height", "box", "options", "expected"),
    [
        (100, 100, None, {"size": 224}, (0, 0, 100, 100)),
        (300, 200, None, {"size": 100}, (50, 0, 250, 200)),
        (200, 300, None, {"size": 100, "fit": "pad"}, (-50, 0, 250, 300)),
        (300, 100, None, {"size": 50, "fit": "target_pad", "target_ratio": 1.5}, (48, -50, 248, 150)),
        (200, 300, (50, 100, 150, 300), {"size": 50}, (50, 150, 150, 250)),
        (200, 300, (50, 100, 150, 300), {"size": 60, "box_margin": 0.1}, (40, 130, 160, 250)),  # cut below
        # Resized to 10 x 13, of which rows 2 to 12 are kept: int(round(3 / 2)) is 2.
        (20, 27, None, {"size": 10}, (0, 2 * 27 / 13, 20, 12 * 27 / 13)),
    ],
)
def test_input_window(width, height, box, options, expected):
    assert input_window(width, height, box, **options) == pytest.approx(expected)


def test_input_window_errors():
    with pytest.raises(ValueError, match="box must overlap the image of 20 x 10 pixels, got"):
        input_window(20, 10, (20, 0, 30, 10), size=8)
    with pytest.raises(ValueError, match="fit must be 'crop', 'pad' or 'target_pad', got 'stretch'"):
        input_window(20, 10, size=8, fit="stretch")


def test_pointing():
    # One cell of 4 x 2 is 50 x 100 pixels of the window; the peak of map 0 lies at (175 + 100, 150).
    peaks = [[0.875, 0.75], [0.875, 0.75], [0.875, 0.75], [np.nan, np.nan]]
    windows = [[100, 0, 300, 200]] * 4
    sleeves = [[0, 0, 10, 10], [270, 140, 276, 151]]
    regions = [sleeves, [[0, 0, 275, 300]], [[275, 150, 276, 151]], [[-1000, -1000, 1000, 1000]]]
    assert pointing(peaks, windows, regions).tolist() == [True, False, True, False]
    with pytest.raises(ValueError, match=r"peaks and windows must have shapes \[1, 2\] and \[1, 4\]"):
        pointing(peaks, windows, [sleeves])
