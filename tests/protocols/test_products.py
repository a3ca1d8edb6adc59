from __future__ import annotations

import numpy as np
import plain_rankings as plain
import pytest
import torch
import torch.nn.functional as F

from placket.protocols import PROTOCOLS, Photos, Rerank, Result, c2s_topk, compare, inshop_recall, products
from placket.rerank import k_reciprocal, query_expansion

KINDS = ["plain", "categories", "sequences", "own", "all"]


def make(kind: str) -> tuple[Photos, Photos]:
    """Products with and without shop photos, of which some are not known."""
    random = np.random.default_rng(7)
    queries, shop = np.arange(60), np.arange(50, 200) if kind in ("own", "all") else np.arange(60, 200)
    product = random.integers(25, size=200)
    category, sequence = product % 3, random.integers(-1, 12, size=200)
    unknown = np.where(np.arange(200) % 9 == 0, -1, product)
    chosen = {
        "categories": kind in ("categories", "all"),
        "sequences": kind in ("sequences", "all"),
    }

    def of(images: np.ndarray, products: np.ndarray) -> Photos:
        return Photos(
            images,
            products[images],
            category[images] if chosen["categories"] else None,
            sequence[images] if chosen["sequences"] else None,
        )

    return of(queries, np.where(np.arange(200) < 4, 25, product)), of(shop, unknown)


def literal(queries: Photos, gallery: Photos, scores: np.ndarray) -> tuple[list[int], list[float], int]:
    """Rank of the first answer, average precision, and queries without an answer, one query at a time."""
    firsts, precisions, without = [], [], 0
    for q in range(len(queries.images)):
        met = [
            c
            for c in range(len(gallery.images))
            if gallery.images[c] != queries.images[q]
            and (queries.categories is None or gallery.categories[c] == queries.categories[q])
            and (
                queries.sequences is None
                or queries.sequences[q] < 0
                or gallery.sequences[c] != queries.sequences[q]
            )
        ]
        relevant = [gallery.products[c] == queries.products[q] for c in met]
        ranked = plain.ranked([scores[q, c] for c in met], relevant)
        firsts.append(plain.rank_of_first(ranked))
        precisions.append(plain.average_precision(ranked))
        without += not any(relevant)
    return firsts, precisions, without


def check(
    result: Result, queries: Photos, expected: tuple[list[int], list[float], int], ks: list[int]
) -> None:
    firsts, precisions, without = expected
    names = list(result.queries)
    groups = np.zeros(60, int) if queries.categories is None else queries.categories
    for g, name in enumerate(names):
        rows = np.flatnonzero(groups == g)
        for metric, k in zip(result.metrics, ks, strict=False):
            hits = [1 <= firsts[q] <= k for q in rows]
            assert result.metrics[metric].values[name].tolist() == hits
        assert result.metrics["mAP"].values[name].tolist() == pytest.approx([precisions[q] for q in rows])
        assert result.queries[name] == len(rows)
    assert result.without_relevant == without > 0
    assert result.group == "category"


@pytest.mark.parametrize("kind", KINDS)
def test_products_match_a_plain_loop(kind: str):
    queries, gallery = make(kind)
    rows = plain.exact_rows(200)
    scores = (rows[queries.images] @ rows[gallery.images].T).numpy()
    expected = literal(queries, gallery, scores)
    embeddings = rows[queries.images], rows[gallery.images]
    result = inshop_recall(queries, gallery, *embeddings)
    assert list(result.metrics) == ["Recall@1", "Recall@10", "Recall@20", "Recall@30", "mAP"]
    check(result, queries, expected, [1, 10, 20, 30])
    if kind in ("plain", "categories"):
        result = c2s_topk(queries, gallery, *embeddings, gallery_kind="all-shop")
        assert list(result.metrics)[:4] == [f"top-{k} accuracy" for k in (1, 10, 20, 50)]
        check(result, queries, expected, [1, 10, 20, 50])
        assert (result.protocol, result.gallery) == ("c2s-topk/v1", "all-shop")
        assert "c2s-topk/v1, gallery all-shop, ranked by cosine" in result.table()


def test_spaces_are_averaged_by_weight():
    queries, gallery = make("categories")
    rows = plain.exact_rows(200, 3)
    spaces = [(rows[queries.images, s] @ rows[gallery.images, s].T).numpy() for s in range(3)]
    weights = [0.5, 2, 1]
    result = inshop_recall(
        queries, gallery, rows[queries.images], rows[gallery.images], weights=weights, categories="abc"
    )
    scores = sum(w * s for w, s in zip(weights, spaces, strict=True))
    check(result, queries, literal(queries, gallery, scores), [1, 10, 20, 30])
    assert list(result.queries) == ["a", "b", "c"]
    assert result.candidates["b"] == (gallery.categories == 1).sum()


@pytest.mark.parametrize("rerank", ["k-reciprocal", "query-expansion"])
@pytest.mark.parametrize("kind", KINDS)
def test_reranking_is_of_the_photos_of_a_category(kind: str, rerank: Rerank):
    queries, gallery = make(kind)
    directions = F.normalize(torch.randn(26, 16), dim=1)
    shown = np.concatenate([queries.products, gallery.products[-140:]])  # by image
    rows = F.normalize(directions[torch.from_numpy(shown)] + 0.4 * torch.randn(200, 16), dim=1)
    scores = np.zeros((60, len(gallery.images)), np.float32)
    all_alike = queries.categories is None
    for category in range(1 if all_alike else 3):
        asked, met = (
            np.flatnonzero(np.full(len(photos.images), True) if all_alike else photos.categories == category)
            for photos in (queries, gallery)
        )
        places = {image: place for place, image in enumerate(gallery.images[met].tolist())}
        same = [places.get(image, -1) for image in queries.images[asked].tolist()]
        several = rows[queries.images[asked]], rows[gallery.images[met]]
        if rerank == "k-reciprocal":
            found = k_reciprocal(*several, same=same)
        else:
            found = query_expansion(*several, same=same) @ several[1].T
        scores[np.ix_(asked, met)] = found.numpy()
    embeddings = rows[queries.images], rows[gallery.images]
    result = inshop_recall(queries, gallery, *embeddings, rerank=rerank)
    check(result, queries, literal(queries, gallery, scores), [1, 10, 20, 30])
    plainly = inshop_recall(queries, gallery, *embeddings)
    assert result.lists == plainly.lists
    assert result.similarity.startswith("cosine, re-ranked by ")
    assert result.metrics["mAP"].overall > plainly.metrics["mAP"].overall
    assert compare(plainly, result).metrics["mAP"].difference > 0


def test_reranking_joins_spaces_and_takes_short_lists(monkeypatch: pytest.MonkeyPatch):
    queries, gallery = make("all")
    rows = F.normalize(torch.randn(200, 2, 8), dim=2)
    weights = [0.5, 2]
    joined = torch.cat([rows[:, 0] * 0.2**0.5, rows[:, 1] * 0.8**0.5], dim=1)
    rerank: Rerank
    for rerank in ("k-reciprocal", "query-expansion"):
        found, other = (
            inshop_recall(queries, gallery, r[queries.images], r[gallery.images], weights=w, rerank=rerank)
            for r, w in ((rows, weights), (joined, None))
        )
        for name, metric in other.metrics.items():
            assert found.metrics[name].overall == pytest.approx(metric.overall)
        with pytest.raises(ValueError, match=r"weights must not be negative with rerank, got \[1.0, -1.0\]"):
            inshop_recall(
                queries, gallery, rows[queries.images], rows[gallery.images], weights=[1, -1], rerank=rerank
            )
        # One query that is the only candidate, and two queries of two others.
        asked, offered = Photos(np.array([7]), np.array([1])), Photos(np.array([7]), np.array([1]))
        alone = inshop_recall(asked, offered, joined[:1], joined[:1], rerank=rerank)
        assert (alone.without_relevant, alone.metrics["mAP"].overall) == (1, 0)
        asked, offered = Photos(np.arange(2), np.arange(2)), Photos(np.arange(2, 4), np.arange(2))
        both = inshop_recall(asked, offered, joined[:2], joined[:2], rerank=rerank)
        assert both.metrics["Recall@1"].overall == 100
    embeddings = joined[queries.images], joined[gallery.images]
    monkeypatch.setattr(products, "MOST_PAIRS", 100)
    inshop_recall(queries, gallery, *embeddings, rerank="query-expansion")
    with pytest.raises(ValueError, match=r"at most 100 pairs of query and candidate .*, got \d+ x \d+; "):
        inshop_recall(queries, gallery, *embeddings, rerank="k-reciprocal")
    with pytest.raises(ValueError, match="rerank must be one of k-reciprocal, query-expansion, got 'none'"):
        inshop_recall(queries, gallery, *embeddings, rerank="none")  # type: ignore[arg-type]


def test_lists_tell_what_was_compared():
    queries, gallery = make("all")
    embeddings = torch.ones(60, 1), torch.ones(150, 1)
    whole = inshop_recall(queries, gallery, *embeddings)
    for changed in (
        gallery._replace(products=gallery.products[::-1].copy()),
        gallery._replace(sequences=np.zeros(150, int)),
        gallery._replace(images=gallery.images + 1000),
    ):
        assert inshop_recall(queries, changed, *embeddings).lists != whole.lists
    assert inshop_recall(queries, gallery, *embeddings, missing=4).protocol == "inshop-recall/v1 subset"
    assert PROTOCOLS["inshop-recall/v1"] is inshop_recall


def test_product_errors():
    queries, gallery = make("plain")
    rows = torch.ones(60, 1), torch.ones(140, 1)
    none = Photos(np.zeros(0, int), np.zeros(0, int))
    strange = Photos(queries.images, np.where(queries.images == 5, -1, queries.products))
    for arguments, message in [
        ((none, gallery, *rows), "queries must hold at least one photo, got none"),
        (
            (queries, gallery, rows[0], rows[1] * 2),
            "gallery_embeddings must be L2-normalised rows, got norm 2",
        ),
        ((queries, gallery, rows[0], rows[0]), r"gallery_embeddings must have shape \[140, D\]"),
        (
            (queries, gallery, rows[0], rows[1].expand(140, 2) / 2**0.5),
            r"query_embeddings and gallery_embeddings must have the same spaces, got \[\[1\], \[2\]\]",
        ),
        (
            (queries._replace(products=np.zeros(3, int)), gallery, *rows),
            r"products of queries must have shape",
        ),
        (
            (queries._replace(images=np.zeros(60, int)), gallery, *rows),
            "images of queries must be there once",
        ),
        (
            (make("categories")[0], gallery, *rows),
            "categories must be given for queries and gallery or for neit",
        ),
        ((strange, gallery, *rows), "products of queries must be 0 or more, got -1 for image 5"),
    ]:
        with pytest.raises(ValueError, match="inshop_recall: " + message):
            inshop_recall(*arguments)
    with pytest.raises(ValueError, match=r"inshop_recall: weights must have shape \[1\].*got \[2\]"):
        inshop_recall(queries, gallery, *rows, weights=[1, 2])
    with pytest.raises(ValueError, match="gallery_kind must be one of all-shop, per-subset, got 'shop'"):
        c2s_topk(queries, gallery, *rows, gallery_kind="shop")  # type: ignore[arg-type]
