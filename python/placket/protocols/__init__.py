"""Evaluation protocols: which queries meet which candidates, and what is counted.

A protocol has a name and a version, and its result says which it was, by what lists, with how many queries,
candidates and images missing. ``python/README.md`` defines each on a page. What they have in common:

- Candidates are ranked by cosine similarity in float32, equal ones in the order of the list.
- A query that no candidate can answer counts as 0 and stays in the mean.
- Figures are per cent, with 95 % bootstrap intervals over queries; a result keeps the figure of every query,
  so that ``compare`` can test whether two models differ.
- Images that a data set lacks are counted, and the result is one of "... subset".
"""

from __future__ import annotations

from collections.abc import Callable

from placket.protocols._ranking import Similarity
from placket.protocols.asfr import (
    Embed,
    EmbedClass,
    asfr_map_all,
    asfr_multilabel,
    asfr_multilabel_class,
    embed_from,
    expected_average_precision,
)
from placket.protocols.attention import attention_peaks, input_window, pointing
from placket.protocols.comparison import Comparison, Difference, compare
from placket.protocols.composed import Reference, composed_recall
from placket.protocols.fashioniq import fashioniq_original, fashioniq_val
from placket.protocols.joint import (
    Blocks,
    RegionWeight,
    asfr_joint,
    joint_embed,
    split_joint,
    tune_region_weight,
)
from placket.protocols.literature import PublishedBlock, PublishedRow, beside, block_of, published
from placket.protocols.prediction import best_thresholds, recognition, recognition_targets
from placket.protocols.products import Gallery, Photos, Rerank, c2s_topk, inshop_recall
from placket.protocols.result import Metric, Result
from placket.protocols.statistics import bootstrap_interval

__all__ = [
    "PROTOCOLS",
    "Blocks",
    "Comparison",
    "Difference",
    "Embed",
    "EmbedClass",
    "Gallery",
    "Metric",
    "Photos",
    "PublishedBlock",
    "PublishedRow",
    "Reference",
    "RegionWeight",
    "Rerank",
    "Result",
    "Similarity",
    "asfr_joint",
    "asfr_map_all",
    "asfr_multilabel",
    "asfr_multilabel_class",
    "attention_peaks",
    "beside",
    "best_thresholds",
    "block_of",
    "bootstrap_interval",
    "c2s_topk",
    "compare",
    "composed_recall",
    "embed_from",
    "expected_average_precision",
    "fashioniq_original",
    "fashioniq_val",
    "input_window",
    "inshop_recall",
    "joint_embed",
    "pointing",
    "published",
    "recognition",
    "recognition_targets",
    "split_joint",
    "tune_region_weight",
]

PROTOCOLS: dict[str, Callable[..., Result]] = {
    "asfr-map-all/v1": asfr_map_all,
    "asfr-multilabel/v1": asfr_multilabel,
    "asfr-multilabel-class/v1": asfr_multilabel_class,
    "fashioniq-original/v1": fashioniq_original,
    "fashioniq-val/v1": fashioniq_val,
    "composed-recall/v1": composed_recall,
    "c2s-topk/v1": c2s_topk,
    "inshop-recall/v1": inshop_recall,
    "recognition/v1": recognition,
}
"""Protocols by the names that commands and configurations use."""
