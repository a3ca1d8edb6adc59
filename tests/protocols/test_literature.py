from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from placket.protocols import PROTOCOLS, PublishedBlock, Result, beside, published

BLOCKS = {(block.protocol, block.data): block for block in published()}
FASHIONAI = BLOCKS["asfr-map-all/v1", "FashionAI"]


def like(block: PublishedBlock, **changes: object) -> Result:
    """A result by the lists of a block."""
    by_group = {g: np.full(n, 0.5) for g, n in zip(block.groups, block.queries, strict=True)}
    candidates = block.candidates or (9,) * len(block.groups)
    metrics = [name for name in ("MAP@all", "MAP@100", "Recall@10") if name in block.rows[-1].metrics]
    result = Result.of(
        block.protocol,
        dict.fromkeys(metrics, by_group),
        queries=dict(zip(block.groups, block.queries, strict=True)),
        candidates=dict(zip(block.groups, candidates, strict=True)),
        without_relevant=0,
        similarity="cosine",
        lists=block.lists or "1" * 64,
    )
    return dataclasses.replace(result, **changes)


def test_overall_figures_are_means_of_the_attributes_by_queries():
    """systems.md 1.5: which query set a published table used can be told from its overall figures."""
    checked = {}
    for block in published():
        if block.protocol.startswith("asfr-") and block.queries:
            for row in block.rows:
                if row.per_group:
                    mean = np.average(row.per_group, weights=block.queries)
                    # Figures are rounded to 0.01, the attributes' and the overall one; the notes are of two
                    # rows that no weights fit.
                    bound = 0.1 if row.note else 0.0151
                    assert mean == pytest.approx(row.metrics["MAP@all"], abs=bound), row
                    checked[block.data, row.method] = round(float(mean), 2)
    assert checked["FashionAI", "RPF"] == 70.11
    assert checked["DARN", "RPF"] == 58.80
    assert checked["FashionAI", "ASEN (re-run)"] == 57.37
    assert checked["FashionAI", "ASEN++ (re-run)"] == 64.27
    assert checked["FashionAI", "M3-Net"] == 75.04
    assert len(checked) == 29


def test_multilabel_rows_are_of_another_query_set():
    multilabel = BLOCKS["asfr-multilabel/v1", "DeepFashion"]
    single = BLOCKS["asfr-map-all/v1", "DeepFashion"]
    row = next(row for row in multilabel.rows if row.method == "M3-Net")
    assert np.average(row.per_group, weights=single.queries) == pytest.approx(21.54, abs=0.005)
    assert row.metrics["MAP@all"] == 21.78
    other = BLOCKS["asfr-map-all/v1", "DARN, a copy of 203,000 images"]
    official = BLOCKS["asfr-map-all/v1", "DARN"]
    assert not other.queries
    means = [np.average(row.per_group, weights=official.queries) for row in other.rows]
    assert np.round(means, 2)[[0, 1, 2, 3, 6]].tolist() == [52.86, 54.40, 55.68, 62.64, 72.46]


def test_every_row_says_where_it_is_from():
    names = set(PROTOCOLS)
    for block in published():
        assert block.protocol in names or (block.protocol[0], block.protocol[-1]) == ("(", ")")
        assert len(block.queries) in (0, len(block.groups))
        assert len(block.candidates) in (0, len(block.groups))
        for row in block.rows:
            assert row.source
            assert row.metrics
            assert row.evidence in ("published", "second-hand", "derived")
            assert all(0 < value < 100 for value in (*row.metrics.values(), *row.per_group))
            assert len(row.per_group) in (0, len(block.groups))


def test_a_run_beside_the_literature():
    result = like(FASHIONAI)
    rows = beside(result)
    assert [row["method"] for row in rows] == [
        *(row.method for row in FASHIONAI.rows),
        f"this run (placket {result.version})",
    ]
    assert list(rows[0])[-4:] == ["MAP@all", "MAP@100", "evidence", "source"]
    assert (rows[-1]["MAP@all"], rows[-1]["skirt length"]) == (50.0, 50.0)
    table = result.table("markdown", published=True)
    assert "| RPF | 66.75 | 67.86 |" in table
    assert f"\n{result.note}. {FASHIONAI.note}" in table
    assert beside(result, "FashionAI") == rows
    # What is known of FashionIQ's galleries are their sizes.
    assert beside(like(BLOCKS["fashioniq-val/v1", "FashionIQ"]))[0]["method"] == "FashionVLP"


@pytest.mark.parametrize(
    ("result", "data"),
    [
        (like(FASHIONAI, lists="0" * 64), None),
        (like(FASHIONAI, protocol="asfr-map-all/v1 subset"), None),
        (like(FASHIONAI, protocol="asfr-multilabel/v1"), None),
        (like(FASHIONAI), "DARN"),
        (like(FASHIONAI), "DARN, a copy of 203,000 images"),
        (like(BLOCKS["fashioniq-val/v1", "FashionIQ"], protocol="fashioniq-original/v1"), "FashionIQ"),
    ],
)
def test_other_protocols_and_lists_are_refused(result: Result, data: str | None):
    with pytest.raises(
        ValueError, match=r"published: protocol and lists must be those of .*, got .* queries"
    ):
        result.table(published=data or True)
