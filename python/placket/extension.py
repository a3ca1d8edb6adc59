"""Further attributes for a trained model, by what is theirs alone."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from placket.nn import AttributeNetwork, Model, RafClip, Trunk
from placket.schema import Attribute, AttributeSchema

__all__ = ["extend", "extends"]


def extend(
    model: Model,
    attributes: Mapping[str, Sequence[str]],
    *,
    adapter_rank: int | None = None,
    generator: torch.Generator | None = None,
) -> Model:
    """Return a copy of a trained model that knows further attributes, which a training then teaches it.

    A ``RafClip`` knows them by their words at once (``RafClip.with_attributes``). In another model each gets
    rows of its own where tensors have one for each attribute (the attribute table), and an adapter in each
    branch, a small attention to the trunk's map (csrc/models/head.h). Train it with a stage that has
    ``new_attributes``, ``batch_norm="frozen"`` and no weight decay, as the recipe ``extend.yaml`` does: these
    alone change, and embeddings under the other attributes stay as they are to the bit.

    Example::

        model = placket.extend(placket.load("runs/first/best"), {"closure": ["none", "zip", "buttons"]})
        stage = StageConfig(
            sampler="images", losses={"region_classify": 1.0}, new_attributes=1, batch_norm="frozen"
        )
        placket.Trainer(model, data, stage).run()
        placket.index.extend(index, model, data.split("test"))

    Args:
        model: not changed.
        attributes: names of the new ones and of their values.
        adapter_rank: width of the adapters' bottleneck, 64 by default; a model that was extended before keeps
            its own.
        generator: of the initial values; None takes torch's default generator.

    Raises:
        ValueError: an attribute is there already, none is given, the rank is another, or the model is an
            M3-Net: its class sub-network takes the classes of all attributes in one product, whose rounding
            depends on how many there are, and an adapter alone would leave the new attribute without classes.
    """
    if isinstance(model, RafClip):
        return model.with_attributes(attributes)
    if not attributes:
        raise ValueError("extend: attributes must be at least one, got none")
    assert isinstance(model, AttributeNetwork)
    config = model.config
    added = tuple(Attribute(name, tuple(values)) for name, values in attributes.items())
    schema = AttributeSchema(model.schema.attributes + added)
    rank = adapter_rank or config.adapter_rank
    if config.adapters_from and rank != config.adapter_rank:
        raise ValueError(
            f"extend: adapter_rank must be {config.adapter_rank} as of the adapters there are, got {rank}"
        )
    if model.has_classes:
        raise ValueError(
            "extend: model must not have a class sub-network, which takes the classes of all attributes in "
            "one product, so that further ones would change bits of the others' embeddings, "
            f"got {model.name}; train one of all attributes"
        )
    made = dataclasses.replace(
        config.for_schema(schema),
        adapters_from=config.adapters_from or config.attributes,
        adapter_rank=rank,
    )
    longer = type(model).of(
        schema,
        made,
        _own(model.region.trunk),
        _own(model.patch.trunk) if config.patch_trunk else None,
        model.preprocess,
        generator,
    )
    known = model.state_dict()
    with torch.no_grad():
        for name, tensor in longer.state_dict().items():
            if name in known:
                _leading(tensor, known[name]).copy_(known[name])
    device = next(model.parameters()).device
    return longer.to(device).train(model.training)


def extends(longer: Model, model: Model) -> bool:
    """Whether a model is another one that ``extend`` and a training with ``new_attributes`` made longer."""
    count = len(model.schema)
    if type(longer) is not type(model) or longer.schema.attributes[:count] != model.schema.attributes:
        return False
    if not isinstance(longer, AttributeNetwork) or not isinstance(model, AttributeNetwork):
        same = {**longer.config_dict(), "schema": model.schema.to_dict()} == model.config_dict()
        given = longer.state_dict()
        return same and all(torch.equal(given[name], own) for name, own in model.state_dict().items())
    config = dataclasses.replace(
        longer.config.for_schema(model.schema),
        adapters_from=model.config.adapters_from,
        adapter_rank=model.config.adapter_rank,
        learned_classes=model.config.learned_classes,
        class_temperature=model.config.class_temperature,
    )
    if config != model.config or longer.preprocess != model.preprocess:
        return False
    state = longer.state_dict()
    return all(torch.equal(_leading(state[name], own), own) for name, own in model.state_dict().items())


def _own(trunk: torch.nn.Module) -> str | torch.nn.Module:
    return trunk.name if isinstance(trunk, Trunk) else copy.deepcopy(trunk)


def _leading(tensor: Tensor, part: Tensor) -> Tensor:
    """Return the leading rows of a tensor in every dimension, as many as ``part`` has."""
    return tensor[tuple(slice(size) for size in part.shape)]
