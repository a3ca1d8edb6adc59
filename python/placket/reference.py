"""The operators and models in plain PyTorch: slow, obvious, and the definition that tests compare with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from placket.ranking import RankMetrics


def agcn_composition(
    image: Tensor,
    text: Tensor,
    weights: Mapping[str, Tensor],
    layers: int,
    heads: int,
    image_tokens: Tensor | None = None,
    text_tokens: Tensor | None = None,
    text_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Image and text ``[N, D]`` with further tokens ``[N, P, D]`` and ``[N, L, D]``, there where the mask
    ``[N, L]`` is true, to query ``[N, D]`` and share of the image ``[N]`` of AGCN; weights by name."""
    image, text = _scaled(image), _scaled(text)
    v = image[:, None] if image_tokens is None else torch.cat([image[:, None], _scaled(image_tokens)], 1)
    t = text[:, None] if text_tokens is None else torch.cat([text[:, None], _scaled(text_tokens)], 1)
    present = torch.ones(t.shape[:2], dtype=torch.bool, device=t.device)
    if text_mask is not None:
        present[:, 1:] = text_mask
    everywhere = torch.ones(v.shape[:2], dtype=torch.bool, device=v.device)

    def attend(x: Tensor, context: Tensor, there: Tensor, name: str) -> Tensor:
        key, value = _linear(context, weights, f"{name}.kv").chunk(2, 2)
        heads_of = [
            side.unflatten(2, (heads, -1)).transpose(1, 2)
            for side in (_linear(x, weights, f"{name}.q"), key, value)
        ]
        logits = heads_of[0] @ heads_of[1].transpose(2, 3) / math.sqrt(heads_of[0].shape[3])
        attention = logits.masked_fill(~there[:, None, None], -math.inf).softmax(3)
        return _linear((attention @ heads_of[2]).transpose(1, 2).flatten(2), weights, f"{name}.proj")

    for layer in range(layers):
        of_v, of_t = f"layers.{layer}.image", f"layers.{layer}.text"
        from_v, from_t = _layer_norm(v, weights, f"{of_v}.norm1"), _layer_norm(t, weights, f"{of_t}.norm1")
        v = v + attend(from_v, from_t, present, f"{of_v}.cross")
        t = t + attend(from_t, from_v, everywhere, f"{of_t}.cross")
        sides = []
        for x, there, name in ((v, everywhere, of_v), (t, present, of_t)):
            y = _layer_norm(x, weights, f"{name}.norm2")
            x = x + attend(y, y, there, f"{name}.attn")
            y = _linear(_layer_norm(x, weights, f"{name}.norm3"), weights, f"{name}.mlp.fc1")
            sides.append(x + _linear(F.gelu(y), weights, f"{name}.mlp.fc2"))
        v, t = sides
    v, t = v[:, 0], t[:, 0]
    gate = _linear(torch.cat([v, t, v * t], 1), weights, "gate")
    selection = _linear(torch.cat([v, t], 1), weights, "selection").squeeze(1)
    return gated_fusion(gate, selection, v, t, image, text)


def asen_head(features: Tensor, attributes: Tensor, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """``[B, C, h, w]`` and attributes ``[B]`` to embedding ``[B, E]`` and attention ``[B, h, w]`` of ASEN;
    weights by name."""
    table = weights["attention_table.weight"]
    one_hot = F.one_hot(attributes, len(table)).to(table.dtype)
    p = torch.tanh(_conv1x1(features, weights, "image_proj"))
    s = torch.tanh(one_hot @ table)
    logits = torch.tanh(_conv1x1(s[:, :, None, None] * p, weights, "attention_proj"))
    attention = logits.flatten(1).softmax(1).view(-1, *features.shape[2:])
    pooled = (attention[:, None] * features).sum((2, 3))
    gated = _gate(pooled, F.relu(one_hot @ weights["gate_table.weight"]), weights)
    return _linear(gated, weights, "pooled_proj"), attention


def asen_plus_plus_head(
    features: Tensor, attribute_embedding: Tensor, attributes: Tensor, weights: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """``[B, C, h, w]`` and attributes ``[B]`` to embedding ``[B, E]`` and attention ``[B, h, w]`` of either
    branch of ASEN++; weights by name."""
    e = attribute_embedding[attributes]
    p = torch.tanh(_conv1x1(features, weights, "image_proj"))
    attention = _scaled_attention(torch.tanh(_linear(e, weights, "attribute_proj")), p)
    pooled = (attention[:, None] * features).sum((2, 3))
    gated = _gate(pooled, F.relu(_linear(e, weights, "gate_proj")), weights)
    return _linear(gated, weights, "pooled_proj"), attention


def asen_v2_head(
    features: Tensor,
    attribute_embedding: Tensor,
    attributes: Tensor,
    weights: Mapping[str, Tensor],
    batch_statistics: bool = False,
) -> tuple[Tensor, Tensor]:
    """``[B, C, h, w]`` and attributes ``[B]`` to embedding ``[B, C]`` and attention ``[B, h, w]`` of ASEN v2;
    weights and running statistics by name. The latter stay as they are."""
    e = attribute_embedding[attributes]
    projected = _conv1x1(features, weights, "image_proj")
    if batch_statistics:
        mean, variance = projected.mean((0, 2, 3)), projected.var((0, 2, 3), unbiased=False)
    else:
        mean, variance = weights["image_norm.running_mean"], weights["image_norm.running_var"]
    normalized = (projected - mean[:, None, None]) / torch.sqrt(variance[:, None, None] + 1e-5)
    scale, shift = weights["image_norm.weight"], weights["image_norm.bias"]
    p = torch.tanh(normalized * scale[:, None, None] + shift[:, None, None])
    attention = _scaled_attention(torch.tanh(_linear(e, weights, "attribute_proj")), p)
    pooled = (attention[:, None] * features).sum((2, 3))
    return _gate(pooled, F.relu(_linear(e, weights, "gate_proj")), weights), attention


def assignment_consistency(
    first: Tensor,
    second: Tensor,
    centres: Tensor,
    owners: Tensor,
    attributes: Tensor,
    temperature: float = 0.1,
) -> Tensor:
    terms = []
    for one, other, attribute in zip(first, second, attributes, strict=True):
        known = _seen_classes(centres, owners, int(attribute))
        if len(known) >= 2:
            p = (F.normalize(one, dim=0) @ centres[known].T / temperature).softmax(0)
            q = (F.normalize(other, dim=0) @ centres[known].T / temperature).softmax(0)
            terms.append(-(p.detach() @ q.log() + q.detach() @ p.log()) / 2)
    return torch.stack(terms).mean() if terms else (first * 0).sum()


def attention_pool(logits: Tensor, values: Tensor, background: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    weights = logits.softmax(2)
    pooled = weights @ values.mT
    if not background:
        return pooled, values.new_empty(0), weights
    outside = (1 - weights) / max(values.shape[2] - 1, 1)
    return pooled, outside @ values.mT, weights


def average_precision(
    queries: Tensor, candidates: Tensor, query_values: Tensor, candidate_values: Tensor, block: int = 256
) -> Tensor:
    order = (queries @ candidates.T).argsort(dim=1, descending=True, stable=True)
    relevant = (candidate_values[order] == query_values[:, None]).double()
    rank = torch.arange(1, len(candidates) + 1, device=queries.device)
    return (relevant * relevant.cumsum(1) / rank).sum(1) / relevant.sum(1).clamp_min(1)


def batch_hard(
    embeddings: Tensor,
    labels: Tensor,
    groups: Tensor | None = None,
    semi_hard: bool = False,
    domains: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    cosine = F.normalize(embeddings.to(wide), dim=1) @ F.normalize(embeddings.to(wide), dim=1).T
    positives, negatives = label_relation(labels, groups)
    if domains is not None:
        across = domains[:, None] != domains
        positives, negatives = positives & across, negatives & across
    picked: list[list[tuple[int, float]]] = []
    for similarity, positive, negative in zip(
        cosine.tolist(), positives.tolist(), negatives.tolist(), strict=True
    ):
        rows = range(len(similarity))
        near = [j for j in rows if positive[j]]
        other = [j for j in rows if negative[j]]
        furthest = min(near, key=similarity.__getitem__, default=-1)
        nearest = max(other, key=similarity.__getitem__, default=-1)
        if semi_hard and near and other:
            below = [j for j in other if similarity[j] < similarity[furthest]]
            nearest = max(below, key=similarity.__getitem__, default=-1)
            nearest = nearest if below else min(other, key=similarity.__getitem__)
        picked.append([(j, similarity[j] if j >= 0 else 0.0) for j in (furthest, nearest)])
    index = torch.tensor([[j for j, _ in row] for row in picked], dtype=torch.int64).view(-1, 2)
    value = torch.tensor([[s for _, s in row] for row in picked], dtype=wide).view(-1, 2)
    index, value = index.to(embeddings.device), value.to(embeddings.device)
    return index[:, 0], index[:, 1], value[:, 0], value[:, 1]


def batch_norm_act(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int = 1,
    eps: float = 1e-5,
    relu: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    outputs, means, variances = [], [], []
    for part in input.chunk(groups):
        mean = part.mean((0, 2, 3))
        variance = part.var((0, 2, 3), correction=0)
        normalized = (part - mean[:, None, None]) / (variance[:, None, None] + eps).sqrt()
        outputs.append(normalized * weight[:, None, None] + bias[:, None, None])
        means.append(mean)
        variances.append(variance)
    output = torch.cat(outputs)
    if residual is not None:
        output = output + residual
    return F.relu(output) if relu else output, torch.stack(means).detach(), torch.stack(variances).detach()


def centre_cross_entropy(
    embeddings: Tensor,
    centres: Tensor,
    owners: Tensor,
    attributes: Tensor,
    classes: Tensor,
    scale: float = 16.0,
) -> Tensor:
    terms = []
    for row, attribute, given in zip(embeddings, attributes, classes, strict=True):
        own = (owners == attribute).nonzero().squeeze(1)
        log_share = (scale * F.cosine_similarity(row, centres[own])).log_softmax(0)
        wanted = given[own] if given.dim() else own == given
        if wanted.any():
            terms.append(-log_share[wanted].mean())
    return torch.stack(terms).mean() if terms else embeddings.sum() * 0


def centre_triplet(
    embeddings: Tensor,
    centres: Tensor,
    owners: Tensor,
    attributes: Tensor,
    classes: Tensor,
    margin: float = 0.2,
) -> Tensor:
    terms = []
    for z, attribute, own in zip(embeddings, attributes.tolist(), classes.tolist(), strict=True):
        known = _seen_classes(centres, owners, attribute)
        if own in known and len(known) >= 2:
            cosines = F.normalize(z, dim=0) @ centres.T
            nearest = max(cosines[c] for c in known if c != own)
            terms.append(F.relu(margin - cosines[own] + nearest))
    return torch.stack(terms).mean() if terms else (embeddings * 0).sum()


def class_centre_triplet(
    embeddings: Tensor, anchors: Tensor, negatives: Tensor, centres: Tensor, margin: float = 0.2
) -> Tensor:
    terms = []
    for v, anchor in enumerate(anchors.tolist()):
        own = F.cosine_similarity(embeddings[anchor, v], centres[v], dim=0)
        for other in negatives[:, v].nonzero()[:, 0].tolist():
            near = F.cosine_similarity(embeddings[anchor, v], embeddings[other, v], dim=0)
            terms.append(F.relu(margin - own + near))
    return torch.stack(terms).mean() if terms else (embeddings * 0).sum()


def class_centres(centres: Tensor, embeddings: Tensor, classes: Tensor, momentum: float = 0.9) -> Tensor:
    rows = F.normalize(embeddings.to(centres.dtype), dim=1)
    moved = centres.clone()
    for c in classes.unique().tolist():
        if c >= 0:
            mean = rows[classes == c].mean(0)
            moved[c] = F.normalize(momentum * centres[c] + (1 - momentum) * mean, dim=0)
    return moved


def class_centres_of_sums(centres: Tensor, sums: Tensor, counts: Tensor, momentum: float = 0.9) -> Tensor:
    moved = centres.clone()
    for c, count in enumerate(counts.tolist()):
        if count > 0:
            moved[c] = F.normalize(momentum * centres[c] + (1 - momentum) * sums[c] / count, dim=0)
    return moved


def class_cross_entropy(logits: Tensor, classes: Tensor, owners: Tensor) -> Tensor:
    images = []
    for row, given in zip(logits, classes.tolist(), strict=True):
        labelled = [(attribute, c) for attribute, c in enumerate(given) if c >= 0]
        if labelled:
            terms = [row[owners == attribute].logsumexp(0) - row[c] for attribute, c in labelled]
            images.append(torch.stack(terms).sum())
    return torch.stack(images).mean() if images else (logits * 0).sum()


def class_instance_triplet(
    embeddings: Tensor, anchors: Tensor, positives: Tensor, negatives: Tensor, margin: float = 0.2
) -> Tensor:
    terms = []
    for v, anchor in enumerate(anchors.tolist()):
        cosine = F.cosine_similarity(embeddings[anchor, v], embeddings[:, v])
        for positive in positives[:, v].nonzero()[:, 0].tolist():
            for negative in negatives[:, v].nonzero()[:, 0].tolist():
                if positive != anchor:
                    terms.append(F.relu(margin - cosine[positive] + cosine[negative]))
    return torch.stack(terms).mean() if terms else (embeddings * 0).sum()


def class_recognition(
    logits: Tensor, carried: Tensor, labelled: Tensor, owners: Tensor, positive_weight: float = 10.0
) -> Tensor:
    images = []
    for row, own, known in zip(logits, carried, labelled, strict=True):
        losses = []
        for attribute in known.nonzero()[:, 0].tolist():
            x, y = row[owners == attribute], own[owners == attribute]
            losses.append(-torch.where(y, positive_weight * F.logsigmoid(x), F.logsigmoid(-x)).mean())
        if losses:
            images.append(torch.stack(losses).sum())
    return torch.stack(images).mean() if images else (logits * 0).sum()


def class_sums(embeddings: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    rows = F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)
    sums = torch.stack([rows[classes == c].sum(0) for c in range(count)])
    return sums, torch.stack([(classes == c).sum() for c in range(count)]).to(sums.dtype)


def cosine_triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 0.2) -> Tensor:
    a, p, n = (F.normalize(x, dim=1) for x in (anchor, positive, negative))
    return F.relu(margin - (a * p).sum(1) + (a * n).sum(1))


def combiner_composition(image: Tensor, text: Tensor, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Image and text ``[N, D]`` to query ``[N, D]`` and share of the image ``[N]`` of CLIP4Cir's Combiner;
    weights by name."""
    image, text = _scaled(image), _scaled(text)
    projected = [
        F.relu(_linear(row, weights, f"{name}_projection"))
        for row, name in ((text, "text"), (image, "image"))
    ]
    both = torch.cat(projected, 1)
    v = _linear(F.relu(_linear(both, weights, "combiner.fc1")), weights, "combiner.fc2")
    selection = torch.sigmoid(_linear(F.relu(_linear(both, weights, "scalar.fc1")), weights, "scalar.fc2"))
    image_part, text_part = (1 - selection) * image, selection * text
    return F.normalize(image_part + text_part + v, dim=1), image_share(image_part, text_part)


def crop_resize(
    pixels: Tensor,
    offsets: Tensor,
    sizes: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    height: int,
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    flip: Tensor | None = None,
    windows: Tensor | None = None,
) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    crops = torch.empty((len(boxes), 3, height, width), dtype=dtype, memory_format=layout)
    for i, (box, index) in enumerate(zip(boxes.tolist(), image_index.tolist(), strict=True)):
        x0, y0, x1, y1 = box
        h, w = sizes[index].tolist()
        image = pixels[offsets[index] :][: h * w * 3].view(h, w, 3).long().cpu()
        cut = torch.zeros(y1 - y0, x1 - x0, 3, dtype=torch.int64)
        top, left, bottom, right = max(y0, 0), max(x0, 0), max(min(y1, h), 0), max(min(x1, w), 0)
        if top < bottom and left < right:
            cut[top - y0 : bottom - y0, left - x0 : right - x0] = image[top:bottom, left:right]
        full_height, full_width, y, x = (height, width, 0, 0) if windows is None else windows[i].tolist()
        crop = pillow_resize(cut, full_height, full_width)[y : y + height, x : x + width]
        if flip is not None and flip[i]:
            crop = crop.flip(1)
        crops[i] = ((crop / 255 - torch.tensor(mean)) / torch.tensor(std)).movedim(2, 0)
    return crops.to(pixels.device)


def csn_head(features: Tensor, attributes: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """``[B, C, h, w]`` and attributes ``[B]`` to CSN's embedding ``[B, E]``; weights by name."""
    return F.relu(weights["masks.weight"][attributes]) * triplet_head(features, weights)


def decompositions() -> dict[torch._ops.OperatorBase, Callable[..., object]]:
    """Return torch's decompositions, and those of the operators that exported models hold.

    For exporters that know ATen alone, ONNX for example::

        program = torch.export.export(composition, (), inputs).run_decompositions(decompositions())
        torch.onnx.export(program, (), "composition.onnx", kwargs=inputs)
    """
    table = torch.export.default_decompositions()
    table[torch.ops.placket.gated_fusion.default] = gated_fusion
    return table


def flat_search(
    queries: Sequence[Tensor],
    database: Sequence[Tensor],
    weights: Sequence[float],
    keep: Tensor | None = None,
    k: int = 10,
) -> tuple[Tensor, Tensor, Tensor]:
    parts = torch.stack([q @ x.T for q, x in zip(queries, database, strict=True)], dim=2)
    scores = torch.zeros(parts.shape[:2], device=parts.device)
    for s, weight in enumerate(weights):
        scores = scores + parts[:, :, s] * torch.tensor(weight, dtype=torch.float32)
    found = torch.arange(len(database[0]), device=parts.device)
    if keep is not None:
        found = found[keep]
    scores, order = scores[:, found].sort(dim=1, descending=True, stable=True)
    rows = found[order][:, :k]
    return scores[:, :k], rows, parts.gather(1, rows[:, :, None].expand(-1, -1, parts.shape[2]))


def gated_fusion(
    gate_logits: Tensor,
    selection_logits: Tensor,
    image: Tensor,
    text: Tensor,
    image_clip: Tensor,
    text_clip: Tensor,
) -> tuple[Tensor, Tensor]:
    gate, selection = torch.sigmoid(gate_logits), torch.sigmoid(selection_logits)[:, None]
    image_part = gate * image + (1 - selection) * image_clip
    text_part = (1 - gate) * text + selection * text_clip
    return F.normalize(image_part + text_part, dim=1), image_share(image_part, text_part)


def image_share(image_part: Tensor, text_part: Tensor) -> Tensor:
    """Share ``[N]`` of the image in queries of these parts ``[N, D]``."""
    image, text = image_part.detach().norm(dim=1), text_part.detach().norm(dim=1)
    return torch.where(image + text == 0, 0.5, image / (image + text))


def info_nce(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    labels: Tensor | None = None,
    y_labels: Tensor | None = None,
    valid: Tensor | None = None,
    symmetric: bool = True,
) -> Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    logits = scale.to(wide) * (x.to(wide) @ y.to(wide).T)
    positive, negative = (m.to(x.device) for m in pair_relation(len(x), len(y), labels, y_labels, valid))
    sides = [(logits, positive, positive | negative)]
    if symmetric:
        sides.append((logits.T, positive.T, (positive | negative).T))
    means = []
    for z, wanted, compared in sides:
        terms = [
            z[i, compared[i]].logsumexp(0) - z[i, wanted[i]].mean() for i in range(len(z)) if wanted[i].any()
        ]
        means.append(torch.stack(terms).mean() if terms else logits.sum() * 0)
    return torch.stack(means).mean()


def label_relation(labels: Tensor, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
    rows = range(len(labels))
    given, group = labels.tolist(), [0] * len(labels) if groups is None else groups.tolist()
    sets = [] if labels.dtype == torch.bool else [_classes(label) for label in given]
    relation = [[[False] * len(labels) for _ in rows] for _ in range(2)]
    for i in rows:
        for j in rows:
            if labels.dtype == torch.bool:
                counted, related = True, given[i][j] or given[j][i]
            else:
                counted, related = bool(sets[i] and sets[j]), bool(sets[i] & sets[j])
            counted = counted and i != j and group[i] == group[j]
            relation[0][i][j], relation[1][i][j] = counted and related, counted and not related
    positives, negatives = torch.tensor(relation, dtype=torch.bool, device=labels.device).view(
        2, len(labels), len(labels)
    )
    return positives, negatives


def m3net_head(
    features: Tensor,
    attribute_embedding: Tensor | None,
    attributes: Tensor,
    weights: Mapping[str, Tensor],
    classes: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``[B, C, h, w]`` and attributes ``[B]`` to embedding ``[B, E]``, attention ``[B, h, w]``, class
    embedding ``[B, M, F]`` and class logits ``[B, M]``; weights by name, which tell the variant. One
    attribute and one class after another."""
    x = features.flatten(2).transpose(1, 2)  # [B, P, C]
    psi, attribute_alpha, class_alpha, phi = [], [], [], []
    if attribute_embedding is not None:
        key = torch.tanh(_linear(x, weights, "image_proj"))
        for t in attribute_embedding:
            query = torch.tanh(_linear(t, weights, "attribute_proj"))
            alpha = ((key * query).sum(2) / len(query) ** 0.5).softmax(1)
            u = (alpha[:, :, None] * x).sum(1)
            asked = F.relu(_linear(t, weights, "gate.attribute_proj")).expand(len(u), -1)
            gate = _linear(
                F.relu(_linear(torch.cat([u, asked], 1), weights, "gate.fc1")), weights, "gate.fc2"
            )
            gated = gate.sigmoid()[:, None] * x
            psi.append(_linear((alpha[:, :, None] * gated).sum(1), weights, "pooled_proj"))
            attribute_alpha.append(alpha)
    owners = [n for n, count in enumerate(classes) for _ in range(count)]
    for m, n in enumerate(owners):
        if "class_query.weight" in weights:
            e = weights["class_embedding.weight"][m].expand(len(x), -1)
            query = _linear(torch.cat([e, psi[n]], 1) if psi else e, weights, "class_query")
            logit = (torch.tanh(_linear(x, weights, "class_image_proj")) * query[:, None]).sum(2)
            logit = logit / query.shape[1] ** 0.5
            alpha = (logit + attribute_alpha[n].log() if psi else logit).softmax(1)
        else:
            alpha = attribute_alpha[n]
        phi.append(_linear((alpha[:, :, None] * x).sum(1), weights, "class_proj"))
        class_alpha.append(alpha)
    class_embedding = torch.stack(phi, 1)
    logits = (class_embedding * weights["classifier.weight"]).sum(2) + weights["classifier.bias"]
    embeddings, attentions = [], []
    for b, n in enumerate(attributes.tolist()):
        own = [m for m, owner in enumerate(owners) if owner == n]
        share = logits[b, own].softmax(0)
        mixed = (share[:, None] * F.normalize(class_embedding[b, own], dim=1)).sum(0)
        of_classes = weights["class_output.weight"] @ mixed
        embeddings.append(torch.cat([F.normalize(psi[n][b], dim=0), of_classes]) if psi else of_classes)
        of_classes = (share[:, None] * torch.stack([class_alpha[m][b] for m in own])).sum(0)
        attentions.append(attribute_alpha[n][b] if psi else of_classes)
    attention = torch.stack(attentions).unflatten(1, features.shape[2:])
    return torch.stack(embeddings), attention, class_embedding, logits


def pair_relation(
    rows: int, columns: int, labels: Tensor | None, y_labels: Tensor | None, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return which of ``[B, M]`` pairs are positives and which are negatives, see ``ops.info_nce``."""
    compared = torch.ones(rows, columns, dtype=torch.bool)
    if labels is None:
        positive = torch.eye(rows, dtype=torch.bool)
    elif labels.dtype == torch.bool:
        positive = labels.cpu()
    else:
        sets = [
            [_classes(label) for label in side.tolist()] for side in (labels, y_labels) if side is not None
        ]
        of_x, of_y = sets[0], sets[-1]
        positive = torch.tensor([[bool(a & b) for b in of_y] for a in of_x]).view(rows, columns)
        compared = torch.tensor([[bool(a and b) for b in of_y] for a in of_x]).view(rows, columns)
    if valid is not None:
        compared = compared & valid.cpu()
    return compared & positive, compared & ~positive


def pairwise_sigmoid(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    labels: Tensor | None = None,
    y_labels: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    logits = scale.to(wide) * (x.to(wide) @ y.to(wide).T) + (0 if bias is None else bias.to(wide))
    positive, negative = (m.to(x.device) for m in pair_relation(len(x), len(y), labels, y_labels, valid))
    total = F.softplus(-logits[positive]).sum() + F.softplus(logits[negative]).sum()
    return total / (positive | negative).any(1).sum().clamp_min(1)


def prototype_cross_entropy(
    embeddings: Tensor,
    centres: Tensor,
    owners: Tensor,
    attributes: Tensor,
    classes: Tensor,
    temperature: float = 0.1,
) -> Tensor:
    terms = []
    for z, attribute, own in zip(embeddings, attributes.tolist(), classes.tolist(), strict=True):
        known = _seen_classes(centres, owners, attribute)
        if own in known and len(known) >= 2:
            p = (F.normalize(z, dim=0) @ centres[known].T / temperature).softmax(0)
            terms.append(-p[known.index(own)].log())
    return torch.stack(terms).mean() if terms else (embeddings * 0).sum()


def pseudo_label_cross_entropy(
    embeddings: Tensor,
    centres: Tensor,
    owners: Tensor,
    attributes: Tensor,
    classes: Tensor,
    temperature: float = 0.1,
    confidence: float = 0.8,
) -> Tensor:
    terms = []
    for z, attribute, own in zip(embeddings, attributes.tolist(), classes.tolist(), strict=True):
        known = _seen_classes(centres, owners, attribute)
        if own < 0 and len(known) >= 2:
            p = (F.normalize(z, dim=0) @ centres[known].T / temperature).softmax(0)
            if p.max() > confidence:
                terms.append(-p.max().log())
    return torch.stack(terms).mean() if terms else (embeddings * 0).sum()


def _classes(label: int | list[int]) -> frozenset[int]:
    if isinstance(label, int):
        return frozenset([label] if label >= 0 else [])
    return frozenset(64 * w + b for w, word in enumerate(label) for b in range(64) if word >> b & 1)


def pillow_resize(image: Tensor, height: int, width: int) -> Tensor:
    """``[h, w, 3]`` integers in [0, 255] to ``[height, width, 3]``: two passes, each rounded to 8 bits."""

    def resize(axis: int, target: int) -> None:
        nonlocal image
        weights = pillow_weights(image.shape[axis], target)
        image = torch.tensordot(weights, image, ([1], [axis])).movedim(0, axis)
        image = (image + 2**21 >> 22).clamp(max=255)

    rows, columns = image.shape[0] - height, image.shape[1] - width
    passes = [(1, width), (0, height)]
    # Pillow 13 takes the vertical pass first where that saves work (python-pillow/Pillow#9549).
    for axis, target in reversed(passes) if rows > max(0, 2 * columns) else passes:
        resize(axis, target)
    return image


def pillow_weights(source: int, target: int) -> Tensor:
    """``[target, source]``: Pillow's antialiased triangle filter, in units of 2**-22."""
    scale = source / target
    radius = max(scale, 1.0)
    center = (torch.arange(target, dtype=torch.float64)[:, None] + 0.5) * scale
    first = (center - radius + 0.5).long().clamp(min=0)
    end = (center + radius + 0.5).long()
    position = torch.arange(source)
    weight = (1 - ((position - center + 0.5) * (1 / radius)).abs()).clamp(min=0)
    weight = torch.where((first <= position) & (position < end), weight, 0.0)
    total = weight.cumsum(1)[:, -1:]  # adds one by one from the left, as Pillow does
    return (0.5 + weight / total * 2**22).long()


def rank_metrics(
    queries: Sequence[Tensor],
    candidates: Sequence[Tensor],
    weights: Tensor,
    query_groups: Tensor,
    group_offsets: Tensor,
    group_rows: Tensor,
    excluded: Tensor | None = None,
    cutoffs: Sequence[int] = (),
    block: int | None = None,
) -> RankMetrics:
    relevance = (query_groups, group_offsets, group_rows, excluded, cutoffs)
    products = [q @ c.T for q, c in zip(queries, candidates, strict=True)]
    measured = []
    for row in weights.cpu():
        scores = row[0] * products[0]
        for weight, product in zip(row[1:], products[1:], strict=True):
            scores = scores + weight * product
        measured.append(rank_metrics_of_scores(scores, *relevance))
    return RankMetrics(*map(torch.stack, zip(*measured, strict=True)))


def rank_metrics_of_scores(
    scores: Tensor,
    query_groups: Tensor,
    group_offsets: Tensor,
    group_rows: Tensor,
    excluded: Tensor | None = None,
    cutoffs: Sequence[int] = (),
) -> RankMetrics:
    average, expected, hits, sums, first = [], [], [], [], []
    for q, (score, group) in enumerate(zip(scores.tolist(), query_groups.tolist(), strict=True)):
        left_out = -1 if excluded is None else int(excluded[q])
        wanted = set(group_rows[group_offsets[group] : group_offsets[group + 1]].tolist()) - {left_out}
        ranked = sorted(set(range(len(score))) - {left_out}, key=lambda c: (-score[c], c))
        ranks = [rank for rank, c in enumerate(ranked, 1) if c in wanted]
        precisions = [found / rank for found, rank in enumerate(ranks, 1)]
        average.append(sum(precisions) / max(len(wanted), 1))
        expected.append(sum(_expected_precision(c, score, ranked, wanted) for c in wanted))
        expected[-1] /= max(len(wanted), 1)
        hits.append([sum(rank <= k for rank in ranks) for k in cutoffs])
        sums.append([sum(p for p, rank in zip(precisions, ranks, strict=True) if rank <= k) for k in cutoffs])
        first.append(ranks[0] if ranks else 0)
    shape, device = (len(scores), len(cutoffs)), scores.device
    return RankMetrics(
        torch.tensor(average, dtype=torch.float64, device=device),
        torch.tensor(expected, dtype=torch.float64, device=device),
        torch.tensor(hits, dtype=torch.int64, device=device).view(shape),
        torch.tensor(sums, dtype=torch.float64, device=device).view(shape),
        torch.tensor(first, dtype=torch.int64, device=device),
    )


def _expected_precision(own: int, score: Sequence[float], ranked: Sequence[int], wanted: set[int]) -> float:
    """The precision at the rank of a candidate: any number of those that tie with it may precede it."""
    above = [c for c in ranked if score[c] > score[own]]
    tied = [c for c in ranked if score[c] == score[own] and c != own]
    found = sum(c in wanted for c in above) + 1
    density = sum(c in wanted for c in tied) / max(len(tied), 1)
    precisions = [(found + i * density) / (len(above) + 1 + i) for i in range(len(tied) + 1)]
    return sum(precisions) / len(precisions)


def region_box(
    attention: Tensor, sizes: Tensor, threshold: float = 0.1, view: int = 224, squashed: bool = False
) -> Tensor:
    maps = upsample_maps(attention.cpu(), view)
    least, greatest = maps.amin((1, 2), True), maps.amax((1, 2), True)
    extent = greatest - least
    usable = extent.isfinite() & (extent > 0)  # false where a value is not finite
    kept = ((maps - least) / extent * 255).nan_to_num().byte() > math.floor(255 * threshold)
    kept |= ~usable
    boxes = []
    for columns, rows, (height, width) in zip(kept.any(1), kept.any(2), sizes.tolist(), strict=True):
        left, top = int(columns.nonzero()[0]), int(rows.nonzero()[0])
        w, h = int(columns.nonzero()[-1]) + 1 - left, int(rows.nonzero()[-1]) + 1 - top
        d = max(w, h)
        x, y = left + w // 2, top + h // 2
        x = view - d if x + d // 2 > view else max(0, x - d // 2)
        y = view - d if y + d // 2 > view else max(0, y - d // 2)
        shown_w, shown_h = (width, height) if squashed else [min(height, width)] * 2
        x, w = int(x / view * shown_w) + (width - shown_w) // 2, max(1, int(d / view * shown_w))
        y, h = int(y / view * shown_h) + (height - shown_h) // 2, max(1, int(d / view * shown_h))
        boxes.append([x, y, x + w, y + h])
    return torch.tensor(boxes, dtype=torch.int64, device=sizes.device).view(-1, 4)


def region_patch_info_nce(
    region: Tensor,
    patch: Tensor,
    background: Tensor,
    labels: Tensor,
    attributes: Tensor,
    temperature: float = 0.07,
    alpha: float = 12.0,
) -> Tensor:
    wide = torch.float64 if region.dtype == torch.float64 else torch.float32
    if len(region) == 0:
        return region.to(wide).sum()
    r, p, b = (F.normalize(x.to(wide), dim=1) for x in (region, patch, background))
    same_attribute = attributes[:, None] == attributes
    positive = same_attribute & (labels[:, None] == labels)
    patches = r @ p.T / temperature
    backgrounds = r @ b.T / temperature + (math.log(alpha) if alpha > 0 else -math.inf)
    numerator = patches.masked_fill(~positive, -math.inf).logsumexp(1)
    negatives = backgrounds.masked_fill(~same_attribute, -math.inf)
    denominator = torch.cat([patches, negatives], 1).logsumexp(1)
    return (denominator - numerator).mean()


def rpf_joint_embedding(region: Tensor, patch: Tensor, region_weight: float) -> Tensor:
    """``[N, E]`` each to ``[N, 2 E]``: the dot product is beta cos(region) + (1 - beta) cos(patch)."""
    r = region / region.norm(dim=1, keepdim=True)
    p = patch / patch.norm(dim=1, keepdim=True)
    return torch.cat([region_weight**0.5 * r, (1 - region_weight) ** 0.5 * p], dim=1)


def rpf_patch_head(
    features: Tensor,
    attribute_embedding: Tensor,
    attributes: Tensor,
    weights: Mapping[str, Tensor],
    heads: int,
) -> Tensor:
    """``[V, C, h, w]`` and attributes ``[V]`` to ``[V, E]``, without dropout; weights by name."""
    attribute_type, token_type = weights["type_embedding"]
    tokens = _layer_norm(features.flatten(2).transpose(1, 2) + token_type, weights, "token_norm")
    query = _linear(attribute_embedding[attributes], weights, "attribute_proj") + attribute_type
    query = _layer_norm(query, weights, "token_norm")
    views, positions, width = tokens.shape
    q = _linear(query, weights, "attn.q").view(views, 1, heads, width // heads)
    k = _linear(tokens, weights, "attn.k").view(views, positions, heads, width // heads)
    v = _linear(tokens, weights, "attn.v").view(views, positions, heads, width // heads)
    attention = ((q * k).sum(-1, keepdim=True) / (width // heads) ** 0.5).softmax(1)
    mixed = (attention * v).sum(1).flatten(1)
    x = _linear(_linear(mixed, weights, "attn.proj"), weights, "pooled_proj")
    hidden = F.gelu(_linear(_layer_norm(x, weights, "mlp_norm"), weights, "mlp.fc1"))
    return _layer_norm(x + _linear(hidden, weights, "mlp.fc2"), weights, "norm")


def rpf_region_head(
    features: Tensor,
    attribute_embedding: Tensor,
    attributes: Tensor,
    weights: Mapping[str, Tensor],
    project_background: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """``[B, C, h, w]`` and attributes ``[B]`` to region ``[B, E]``, background ``[B, E]`` and attention
    ``[B, h, w]``, without dropout; weights by name, ``pooled_proj`` of all attributes or of each."""
    x = _layer_norm(features.flatten(2).transpose(1, 2), weights, "image_norm")
    e = _layer_norm(attribute_embedding[attributes], weights, "attribute_norm")
    key = torch.tanh(_linear(x, weights, "image_proj"))
    query = torch.tanh(_linear(e, weights, "attribute_proj"))
    attention = ((key * query[:, None]).sum(2) / query.shape[1] ** 0.5).softmax(1)
    rest = (1 - attention) / (1 - attention).sum(1, keepdim=True)

    def embed(u: Tensor) -> Tensor:
        hidden = F.relu(_linear(_layer_norm(u, weights, "norm"), weights, "mlp.fc1"))
        return _layer_norm(u + _linear(hidden, weights, "mlp.fc2"), weights, "norm")

    def project(u: Tensor) -> Tensor:
        weight, bias = weights["pooled_proj.weight"], weights["pooled_proj.bias"]
        if weight.dim() == 2:
            return u @ weight.T + bias
        return (weight[attributes] * u[:, None]).sum(2) + bias[attributes]

    foreground = (attention[:, :, None] * x).sum(1)
    background = (rest[:, :, None] * x).sum(1)
    if project_background:
        background = project(background)
    region = embed(project(foreground))
    return region, embed(background), attention.view(len(features), *features.shape[2:])


def tirg_composition(
    image: Tensor, text: Tensor, weights: Mapping[str, Tensor], batch_statistics: bool = False
) -> tuple[Tensor, Tensor]:
    """Image and text ``[N, D]`` to query ``[N, D]`` and share of the image ``[N]`` of TIRG; weights and
    running statistics by name. The latter stay as they are."""
    image, text = _scaled(image), _scaled(text)
    both = torch.cat([image, text], 1)

    def normalised(name: str) -> Tensor:
        if batch_statistics:
            mean, variance = both.mean(0), both.var(0, unbiased=False)
        else:
            mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        x = (both - mean) / torch.sqrt(variance + 1e-5)
        return F.relu(x * weights[f"{name}.weight"] + weights[f"{name}.bias"])

    gate = torch.sigmoid(_linear(normalised("gate.norm"), weights, "gate.fc"))
    hidden = F.relu(_linear(normalised("residual.norm"), weights, "residual.fc1"))
    image_part = weights["image_scale"] * gate * image
    text_part = weights["residual_scale"] * _linear(hidden, weights, "residual.fc2")
    return F.normalize(image_part + text_part, dim=1), image_share(image_part, text_part)


def triplet_head(features: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """``[B, C, h, w]`` to the triplet network's embedding ``[B, E]``; weights by name."""
    return _linear(features.mean((2, 3)), weights, "pooled_proj")


def supervised_contrastive(
    embeddings: Tensor,
    labels: Tensor,
    groups: Tensor | None = None,
    temperature: float = 0.1,
    inside: bool = False,
) -> Tensor:
    z = F.normalize(embeddings, dim=1)
    positives, negatives = label_relation(labels, groups)
    terms = []
    for i in range(len(z)):
        if positives[i].any():
            shares = (z[positives[i] | negatives[i]] @ z[i] / temperature).exp().sum()
            share = (z[positives[i]] @ z[i] / temperature).exp() / shares
            terms.append(-share.mean().log() if inside else -share.log().mean())
    return torch.stack(terms).mean() if terms else embeddings.sum() * 0


def tri_hard(
    embeddings: Tensor, labels: Tensor, domains: Tensor | None = None, margin: float | None = None
) -> tuple[Tensor, Tensor]:
    z = F.normalize(embeddings, dim=1)
    positives, negatives = label_relation(labels, None)
    terms, farthest = [], []
    for i in range(len(z)):
        other = torch.ones_like(positives[i]) if domains is None else domains != domains[i]
        near, far = positives[i] & other, negatives[i] & other
        distance = (z - z[i]).square().sum(1).clamp_min(1e-12).sqrt()
        if near.any():
            farthest.append(distance[near].max())
        if near.any() and far.any():
            excess = distance[near].max() - distance[far].min()
            terms.append(F.softplus(excess) if margin is None else F.relu(excess + margin))
    nothing = embeddings.sum() * 0
    return (
        torch.stack(terms).mean() if terms else nothing,
        torch.stack(farthest).mean() if farthest else nothing,
    )


def upsample_maps(maps: Tensor, view: int) -> Tensor:
    """``[N, h, w]`` float32 to ``[N, view, view]`` as OpenCV's INTER_LINEAR, no operations joined."""

    def taps(source: int) -> tuple[Tensor, Tensor, Tensor]:
        scale = 1 / (view / source)
        position = ((torch.arange(view, dtype=torch.float64) + 0.5) * scale - 0.5).float()
        low = position.floor().clamp(0, source - 1)
        weight = torch.where((position < 0) | (low == source - 1), 0.0, position - low)
        return low.long(), (low.long() + 1).clamp(max=source - 1), weight

    low, high, weight = taps(maps.shape[2])
    maps = maps[:, :, low] * (1 - weight) + maps[:, :, high] * weight
    low, high, weight = taps(maps.shape[1])
    return maps[:, low] * (1 - weight[:, None]) + maps[:, high] * weight[:, None]


def _conv1x1(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    weight = weights[f"{name}.weight"].flatten(1)
    return torch.einsum("oc,bchw->bohw", weight, x) + weights[f"{name}.bias"][:, None, None]


def _gate(pooled: Tensor, attribute: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """The channel attention of the ASENs: pooled features ``[B, C]``, weighed."""
    hidden = F.relu(_linear(torch.cat([pooled, attribute], 1), weights, "gate.fc1"))
    return torch.sigmoid(_linear(hidden, weights, "gate.fc2")) * pooled


def _layer_norm(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)


def _linear(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _scaled(rows: Tensor) -> Tensor:
    """Rows ``[..., D]`` with a root mean square of 1."""
    return F.normalize(rows, dim=-1) * math.sqrt(rows.shape[-1])


def _scaled_attention(query: Tensor, keys: Tensor) -> Tensor:
    """``[B, D]`` and ``[B, D, h, w]`` to a softmax over positions, ``[B, h, w]``."""
    logits = (query[:, :, None, None] * keys).sum(1) / math.sqrt(query.shape[1])
    return logits.flatten(1).softmax(1).view(logits.shape)


def _seen_classes(centres: Tensor, owners: Tensor, attribute: int) -> list[int]:
    return [c for c, owner in enumerate(owners.tolist()) if owner == attribute and bool(centres[c].any())]
