"""The operators and models in plain PyTorch: slow, obvious, and the definition that tests compare with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


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


def cosine_triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 0.2) -> Tensor:
    a, p, n = (F.normalize(x, dim=1) for x in (anchor, positive, negative))
    return F.relu(margin - (a * p).sum(1) + (a * n).sum(1))


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
    ``[B, h, w]``, without dropout; weights by name."""
    x = _layer_norm(features.flatten(2).transpose(1, 2), weights, "image_norm")
    e = _layer_norm(attribute_embedding[attributes], weights, "attribute_norm")
    key = torch.tanh(_linear(x, weights, "image_proj"))
    query = torch.tanh(_linear(e, weights, "attribute_proj"))
    attention = ((key * query[:, None]).sum(2) / query.shape[1] ** 0.5).softmax(1)
    rest = (1 - attention) / (1 - attention).sum(1, keepdim=True)

    def embed(u: Tensor) -> Tensor:
        hidden = F.relu(_linear(_layer_norm(u, weights, "norm"), weights, "mlp.fc1"))
        return _layer_norm(u + _linear(hidden, weights, "mlp.fc2"), weights, "norm")

    foreground = (attention[:, :, None] * x).sum(1)
    background = (rest[:, :, None] * x).sum(1)
    if project_background:
        background = _linear(background, weights, "pooled_proj")
    region = embed(_linear(foreground, weights, "pooled_proj"))
    return region, embed(background), attention.view(len(features), *features.shape[2:])


def _layer_norm(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)


def _linear(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
