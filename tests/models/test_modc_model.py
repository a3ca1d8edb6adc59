from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import placket
from placket.nn import Modc, Rpf
from placket.schema import AttributeSchema

SCHEMA = AttributeSchema.of({"colour": ["red", "green", "blue"], "hem": ["short", "long"]})
TRUNK = "resnet18,width=0.125,stage=2"


def make() -> Modc:
    model = placket.create_model("modc", schema=SCHEMA, trunk=TRUNK, head="rpf_region", attribute_dim=16)
    assert isinstance(model, Modc)
    return model.eval()


def test_centres_are_a_buffer_that_is_saved_and_moved(tmp_path: Path) -> None:
    model = make()
    assert model.class_centres.shape == (5, model.embedding_dim)
    assert not model.class_centres.any()
    assert "class_centres" not in dict(model.named_parameters())
    model.class_centres.copy_(F.normalize(torch.randn(5, model.embedding_dim), dim=1))
    assert torch.equal(model.centres("hem"), model.class_centres[3:])
    model.save(tmp_path)
    loaded = placket.load(tmp_path)
    assert isinstance(loaded, Modc)
    assert loaded.config == model.config
    assert torch.equal(loaded.class_centres, model.class_centres)
    assert model.to("meta").class_centres.is_meta


def test_networks_of_other_methods_have_no_centres() -> None:
    model = placket.create_model("rpf", schema=SCHEMA, trunk=TRUNK, patch=None, attribute_dim=16)
    assert isinstance(model, Rpf)
    assert not hasattr(model, "class_centres")
    assert not any("centres" in name for name in model.state_dict())


def test_class_probabilities() -> None:
    model = make()
    images = torch.randn(4, 3, 32, 32)
    z = model.encode_all(images)
    centres = F.normalize(torch.randn(5, model.embedding_dim), dim=1)
    centres[1] = 0
    model.class_centres.copy_(centres)
    hem, colour = model.class_probabilities(images, ["hem", 0])
    torch.testing.assert_close(hem, (z[:, 1] @ centres[3:].T / 0.1).softmax(1))
    assert torch.equal(colour[:, 1], torch.zeros(4))
    torch.testing.assert_close(colour[:, [0, 2]], (z[:, 0] @ centres[[0, 2]].T / 0.1).softmax(1))
    model.class_centres[3:] = 0
    assert torch.equal(model.class_probabilities(images, ["hem"])[0], torch.zeros(4, 2))


def test_errors() -> None:
    with pytest.raises(ValueError, match="network: temperature must be positive, got 0"):
        placket.create_model("modc", schema=SCHEMA, trunk=TRUNK, head="rpf_region", temperature=0.0)
