"""Results: figures, tables, files, and the comparison of two."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import placket
from placket.protocols import Result, bootstrap_interval, compare

GROUPS = {"neckline": 40, "hem": 25}


def make(seed: int = 0, lists: str = "ab" * 32, protocol: str = "p/v1", **rest: object) -> Result:
    random = np.random.default_rng(seed)
    values = {
        "MAP@all": {g: random.random(n) for g, n in GROUPS.items()},
        "Recall@1": {g: random.integers(2, size=n).astype(float) for g, n in GROUPS.items()},
    }
    given = {
        "floors": {"MAP@all": {g: np.full(n, 0.25) for g, n in GROUPS.items()}},
        "queries": GROUPS,
        "candidates": {"neckline": 1000, "hem": 900},
        "without_relevant": 3,
        "similarity": "cosine",
        "lists": lists,
        **rest,
    }
    return Result.of(protocol, values, **given)


def test_figures_are_means_of_the_values():
    result = make()
    for metric in result.metrics.values():
        every = np.concatenate(list(metric.values.values()))
        means = {g: 100 * x.mean() for g, x in metric.values.items()}
        assert metric.overall == pytest.approx(100 * every.mean())
        assert metric.per_group == pytest.approx(means)
        assert metric.mean_of_groups == pytest.approx(np.mean(list(means.values())))
        assert metric.interval == bootstrap_interval(100 * every)
        for g, x in metric.values.items():
            assert metric.group_intervals[g] == bootstrap_interval(100 * x)
    assert (result.overall, result.interval) == (result.first.overall, result.first.interval)
    assert result.floor == {"neckline": 25.0, "hem": 25.0}
    assert result.floor_overall == 25.0
    assert result.metrics["Recall@1"].floor is None


def test_mean_of_groups_as_the_overall_figure():
    by_query, by_group = make(), make(by_group=True)
    assert by_group.overall == by_query.mean_of_attributes != by_query.overall
    # The standard error of a mean of independent groups.
    spread = [100 * x.std() / np.sqrt(len(x)) for x in by_group.first.values.values()]
    half = 1.96 * np.sqrt(np.square(spread).sum()) / 2
    low, high = by_group.interval
    assert (by_group.overall - low, high - by_group.overall) == pytest.approx((half, half), rel=0.15)


def test_result_is_saved_whole_and_read_back(tmp_path: Path):
    result = make(missing=2, gallery="all-shop", group="category")
    result.save(tmp_path / "result.json")
    data = json.loads((tmp_path / "result.json").read_text())
    assert data == json.loads(result.to_json())
    assert (data["protocol"], data["overall"]) == ("p/v1 subset", result.overall)
    back = Result.load(tmp_path / "result.json")
    assert back == result
    for name, metric in result.metrics.items():
        for g, values in metric.values.items():
            assert np.array_equal(back.metrics[name].values[g], values)
    assert len((tmp_path / "result.json").read_text()) < 5000
    again = {**data, "rivals": {}}  # what placket evaluate --rivals adds
    assert Result.from_dict(again) == result


@pytest.mark.parametrize("text", ["{}", "[]", "no JSON", '{"metrics": {"a": {"values": {"b": "AAAA"}}}}'])
def test_files_that_are_no_result(text: str, tmp_path: Path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json: file must be a result saved as JSON, got "):
        Result.load(tmp_path / "a.json")


def test_table_is_aligned():
    result = make(missing=1)
    first, second = result.table().split("\n\n")
    lines = first.split("\n")
    assert [line.split("  ")[0] for line in lines] == [
        "attribute",
        "neckline",
        "hem",
        "overall",
        "mean of attributes",
    ]
    assert len({len(line) for line in lines}) == 1
    assert f"{result.overall:.2f}" in lines[3]
    assert lines[0].split()[-4:] == ["95", "%", "interval", "chance"]
    *lines, note = second.split("\n")
    assert lines[0].split() == ["attribute", "MAP@all", "Recall@1"]
    assert note == (
        "p/v1 subset, ranked by cosine, per cent; 3 queries without a relevant candidate, 1 images missing; "
        f"lists abababababab, placket {placket.__version__}"
    )
    assert [row["MAP@all"] for row in result.as_dicts()][2:] == [result.overall, result.mean_of_attributes]
    alone = result.table(metric="Recall@1").split("\n")
    assert "chance" not in alone[0]
    assert len(alone) == 6
    with pytest.raises(ValueError, match="metric must be one of MAP@all, Recall@1, got 'Recall@2'"):
        result.table(metric="Recall@2")


def test_table_forms():
    result = make()
    markdown = result.table("markdown", metric="MAP@all").split("\n")
    assert markdown[0].startswith("| attribute | queries |")
    assert markdown[1] == "| --- | ---: | ---: | ---: | ---: | ---: |"
    assert markdown[-1] == result.note
    latex = result.table("latex", metric="MAP@all")
    assert latex.startswith("\\begin{tabular}{lrrrrr}\n\\toprule\nattribute & queries")
    assert r"95 \% interval" in latex
    assert "\\bottomrule\n\\end{tabular}\n\\par{\\footnotesize p/v1, ranked by cosine" in latex
    assert latex.count("\n") == 10
    assert "<td>neckline</td>" in result.table("html")
    with pytest.raises(ValueError, match="format must be one of text, markdown, latex, html, got 'rtf'"):
        result.table("rtf")  # type: ignore[arg-type]


def test_one_group_needs_no_row_of_its_own():
    values = {"top-1 accuracy": {"all": np.array([0.0, 1.0])}}
    result = Result.of(
        "p/v1",
        values,
        queries={"all": 2},
        candidates={"all": 9},
        without_relevant=0,
        similarity="cosine",
        lists="0" * 64,
        group="category",
    )
    assert [row["category"] for row in result.as_dicts()] == ["overall"]


# Comparison


def with_values(values: dict[str, np.ndarray], **rest: object) -> Result:
    sizes = {g: len(x) for g, x in values.items()}
    given = {"queries": sizes, "candidates": sizes, "without_relevant": 0, "similarity": "cosine"}
    return Result.of("p/v1", {"MAP@all": values}, **{"lists": "0" * 64, **given, **rest})


@pytest.mark.parametrize("by_group", [False, True])
def test_permutation_p_value_is_that_of_all_sign_patterns(by_group: bool):
    random = np.random.default_rng(1)
    a, b = ({"x": random.random(7), "y": random.random(4)} for _ in range(2))
    found = compare(
        with_values(a, by_group=by_group), with_values(b, by_group=by_group), permutations=40_000, seed=3
    ).metrics["MAP@all"]
    weights = {g: 1 / (2 * len(x)) if by_group else 1 / 11 for g, x in a.items()}
    shares = np.concatenate([weights[g] * (b[g] - a[g]) for g in a])
    every = [abs(np.dot(signs, shares)) for signs in itertools.product([-1, 1], repeat=11)]
    exact = np.mean(np.array(every) >= abs(shares.sum()) - 1e-12)
    # Three standard errors of a share of 40,000 draws are at most 0.0075.
    assert found.p_value == pytest.approx(exact, abs=0.0075)
    assert found.difference == pytest.approx(100 * shares.sum())
    assert found.interval[0] < found.difference < found.interval[1]


def test_difference_of_equal_results_is_nothing():
    found = compare(make(), make())
    for difference in found.metrics.values():
        assert (difference.difference, difference.interval, difference.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_pairs_are_more_certain_than_the_results_apart():
    random = np.random.default_rng(2)
    hard = random.random(300)
    a = {"x": hard}
    b = {"x": np.clip(hard + 0.01 + 0.02 * random.standard_normal(300), 0, 1)}
    found = compare(with_values(a), with_values(b)).metrics["MAP@all"]
    low, high = with_values(a).interval
    assert found.interval[1] - found.interval[0] < 0.2 * (high - low)
    assert found.p_value == 1 / 10_001
    other = compare(with_values(b), with_values(a)).metrics["MAP@all"]
    assert (other.difference, other.p_value) == (-found.difference, found.p_value)


def test_p_values_are_uniform_where_nothing_differs():
    random = np.random.default_rng(4)
    values = []
    for trial in range(200):
        a, b = ({"x": random.integers(2, size=60).astype(float)} for _ in range(2))
        found = compare(with_values(a), with_values(b), permutations=199, seed=trial)
        values.append(found.metrics["MAP@all"].p_value)
    # 5 % of 200 is 10, standard deviation 3; ties between sums make the test a little shy.
    assert 1 <= np.sum(np.array(values) <= 0.05) <= 19
    assert 0.4 <= np.mean(values) <= 0.65


def test_comparison_is_reproducible_and_shown():
    one, other = make(), make(1)
    found = compare(one, other)
    assert found == compare(one, other)
    assert found != compare(one, other, seed=1)
    lines = found.table().split("\n")
    assert lines[0].split() == ["metric", "A", "B", "B", "-", "A", "95", "%", "interval", "p"]
    assert lines[1].split()[0] == "MAP@all"
    assert lines[-1].startswith("p/v1, per cent; paired by query, p by 10000 random changes of sign (seed 0)")
    assert json.loads(json.dumps(found.to_dict()))["metrics"]["Recall@1"]["a"] == found.metrics["Recall@1"].a


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make(lists="0" * 64), "must have the same lists, got abab.* and 0000"),
        (make(protocol="q/v1"), "must have the same protocol, got p/v1 and q/v1"),
        (make(missing=1), "must have the same protocol, got p/v1 and p/v1 subset"),
        (make(gallery="per-subset"), "must have the same gallery, got none and per-subset"),
    ],
)
def test_what_cannot_be_compared(other: Result, message: str):
    with pytest.raises(ValueError, match=f"compare: results {message}"):
        compare(make(), other)
