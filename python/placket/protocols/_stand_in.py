"""Plain PyTorch in place of ops.rank_metrics until the operator is there."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def rank_metrics(
    queries: list[Tensor],
    candidates: list[Tensor],
    weights: Tensor,
    query_groups: Tensor,
    group_offsets: Tensor,
    group_rows: Tensor,
    excluded: Tensor | None,
    cutoffs: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    Q, C, W, K = len(queries[0]), len(candidates[0]), len(weights), len(cutoffs)
    ap, eap = torch.zeros(W, Q, dtype=torch.float64), torch.zeros(W, Q, dtype=torch.float64)
    hits = torch.zeros(W, Q, K, dtype=torch.int64)
    psum = torch.zeros(W, Q, K, dtype=torch.float64)
    first = torch.zeros(W, Q, dtype=torch.int64)
    H = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, C + 1))])
    for q in range(Q):
        g = int(query_groups[q])
        relevant = np.zeros(C, bool)
        relevant[group_rows[group_offsets[g] : group_offsets[g + 1]].numpy()] = True
        kept = np.ones(C, bool)
        if excluded is not None and excluded[q] >= 0:
            kept[int(excluded[q])] = False
        parts = [(c @ s[q]) for s, c in zip(queries, candidates, strict=True)]
        for w in range(W):
            score = sum(weights[w, s].item() * p for s, p in enumerate(parts)).numpy()[kept]
            order = np.argsort(-score, kind="stable")
            rel = relevant[kept][order].astype(float)
            if not rel.any():
                continue
            prec = rel * np.cumsum(rel) / np.arange(1, len(rel) + 1)
            ap[w, q] = prec.sum() / rel.sum()
            first[w, q] = int(rel.argmax()) + 1
            for k, cut in enumerate(cutoffs):
                hits[w, q, k] = int(rel[:cut].sum())
                psum[w, q, k] = prec[:cut].sum()
            s = score[order]
            starts = np.flatnonzero(np.concatenate([[True], s[1:] != s[:-1]]))
            ends = np.concatenate([starts[1:], [len(s)]])
            h = np.concatenate([[0], np.cumsum(rel)])
            r, n, before = h[ends] - h[starts], ends - starts, h[starts]
            c = np.where(n > 1, (r - 1) / np.maximum(n - 1, 1), 0)
            total = (r / n * ((before + 1 - c * (starts + 1)) * (H[ends] - H[starts]) + c * n)).sum()
            eap[w, q] = total / rel.sum()
    return ap, eap, hits, psum, first
