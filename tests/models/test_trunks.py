from __future__ import annotations

import re
from collections.abc import Callable

import plain_trunks as plain
import pytest
import torch
from torch import Tensor, nn

from placket.nn import Trunk

TRUNKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18,width=0.25": lambda: plain.ResNet([2, 2, 2], 1, 16),
    "resnet18,width=0.25,stage=2": lambda: plain.ResNet([2, 2], 1, 16),
    "resnet34,width=0.125": lambda: plain.ResNet([3, 4, 6], 1, 8),
    "resnet50,width=0.125": lambda: plain.ResNet([3, 4, 6], 4, 8),
    "resnet50,width=0.125,stage=4": lambda: plain.ResNet([3, 4, 6, 3], 4, 8),
    "resnet50,width=0.125,stage=4,last_stride=1,ibn=true": lambda: plain.ResNet(
        [3, 4, 6, 3], 4, 8, last_stride=1, ibn=True
    ),
    "resnet18,width=0.25,ibn=true": lambda: plain.ResNet([2, 2, 2], 1, 16, ibn=True),
    "squeezenet1_0": plain.SqueezeNet,
    "efficientnet_lite0": lambda: plain.EfficientNetLite0(head=False),
    "efficientnet_lite0,stage=head": lambda: plain.EfficientNetLite0(head=True),
    "vit,width=32,depth=2,heads=4,patch=8,image=32": lambda: plain.Vit(32, 2, 4, 8, 32, norm=False),
    "vit,width=32,depth=2,heads=4,patch=8,image=64,norm=true": lambda: plain.Vit(32, 2, 4, 8, 64, norm=True),
}


@pytest.fixture(params=TRUNKS)
def pair(request: pytest.FixtureRequest) -> tuple[Trunk, nn.Module]:
    """A trunk and the plain module with the same weights."""
    trunk, module = Trunk(request.param), TRUNKS[request.param]()
    plain.randomize(trunk)
    copy_weights(trunk, module)
    return trunk, module


def copy_weights(trunk: Trunk, module: nn.Module) -> None:
    missing, unexpected = module.load_state_dict(trunk.state_dict(), strict=False)
    assert all(name.endswith("num_batches_tracked") for name in missing)
    assert unexpected == []


def assert_near(ours: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    """Of the largest entry, since float32 sums are taken in another order."""
    assert ours.shape == expected.shape
    scale = max(1.0, expected.detach().abs().max().item())
    assert (ours - expected).detach().abs().max().item() <= relative * scale


def test_equals_plain_module(pair: tuple[Trunk, nn.Module]) -> None:
    trunk, module = (m.eval() for m in pair)
    images = torch.randn(2, 3, 64, 96)
    ours = trunk(images)
    assert ours.shape[1] == trunk.channels
    assert_near(ours, module(images))


def test_equals_plain_module_in_training(pair: tuple[Trunk, nn.Module]) -> None:
    # In float64: statistics of few values magnify float32's roundings from layer to layer.
    trunk, module = (m.double().train() for m in pair)
    images = torch.randn(3, 3, 32, 64, dtype=torch.double)
    assert_near(trunk(images), module(images), 1e-9)
    state = trunk.state_dict()
    for name, tensor in module.state_dict().items():
        if "running" in name:
            assert_near(state[name], tensor, 1e-9)


def test_odd_sizes(pair: tuple[Trunk, nn.Module]) -> None:
    if pair[0].name.startswith("vit"):
        pytest.skip("a ViT's images are multiples of its patch")
    trunk, module = (m.eval() for m in pair)
    images = torch.randn(1, 3, 75, 61)
    assert_near(trunk(images), module(images))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "resnet50,width=0.125",
        "efficientnet_lite0",
        "squeezenet1_0",
        "vit,width=32,depth=2,heads=4,patch=8,image=32",
    ],
)
def test_gradient_equals_plain_module(name: str, training: bool) -> None:
    trunk, module = Trunk(name).double().train(training), TRUNKS[name]().double().train(training)
    plain.randomize(trunk)
    copy_weights(trunk, module)
    images = torch.randn(4, 3, 64, 64, dtype=torch.double)
    inputs = [images.clone().requires_grad_() for _ in range(2)]
    ours, expected = trunk(inputs[0]), module(inputs[1])
    direction = torch.randn_like(expected)
    (ours * direction).sum().backward()
    (expected * direction).sum().backward()
    assert_near(inputs[0].grad, inputs[1].grad, 1e-9)
    gradients = {name: p.grad for name, p in module.named_parameters()}
    for name, parameter in trunk.named_parameters():
        assert_near(parameter.grad, gradients[name], 1e-9)


@pytest.mark.parametrize("name", ["resnet18,width=0.25", "efficientnet_lite0,stage=8"])
def test_groups_equal_separate_passes(name: str) -> None:
    merged, separate = Trunk(name).double(), Trunk(name).double()
    separate.load_state_dict(merged.state_dict())
    images = torch.randn(6, 3, 32, 32, dtype=torch.double)
    ours = merged(images, groups=3)
    expected = torch.cat([separate(part) for part in images.chunk(3)])
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(merged.state_dict(), separate.state_dict())


def test_frozen_batch_norm_keeps_statistics() -> None:
    trunk = Trunk("resnet18,width=0.25")
    plain.randomize(trunk)
    images = torch.randn(2, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    trunk.freeze_batch_norm = True
    frozen = trunk(images)
    torch.testing.assert_close(trunk.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(frozen, trunk.eval()(images))


@pytest.mark.parametrize("training", [False, True])
def test_autocast_is_as_near_as_plain_module(training: bool) -> None:
    name = "resnet18,width=0.25"
    trunk, module = Trunk(name).train(training), TRUNKS[name]().train(training)
    plain.randomize(trunk)
    copy_weights(trunk, module)
    images = torch.randn(4, 3, 64, 64)
    exact = trunk(images)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = trunk(images), module(images)
    assert ours.dtype == torch.bfloat16
    # Flash-attention's rule: twice the error of plain PyTorch, and one rounding of the largest entry.
    allowed = 2 * (theirs - exact).abs().max() + exact.abs().max() * 2**-8
    assert (ours - exact).abs().max() <= allowed


def test_reference_sizes() -> None:
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in Trunk(name).parameters())
            for name in (
                "resnet50",
                "squeezenet1_0",
                "vit_base_patch16_224",
                "vit_tiny_patch16_224,norm=true",
            )
        }
    assert counts == {
        "resnet50": 8_543_296,
        "squeezenet1_0": 735_424,
        "vit_base_patch16_224": 85_797_120,
        "vit_tiny_patch16_224,norm=true": 5_524_416,
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Trunk("resnet19"),
            "trunk: name must be one of resnet18, resnet34, resnet50, squeezenet1_0,",
        ),
        (
            lambda: Trunk("resnet18,depth=3"),
            "trunk: setting must be one of stage, ibn, width, last_stride, got 'depth'",
        ),
        (
            lambda: Trunk("resnet18,stage=5"),
            "trunk: stage must be one of 2, 3, 4, got '5' in 'resnet18,stage=5'",
        ),
        (lambda: Trunk("vit,width=30,heads=4"), "trunk: width must be divisible by heads, 4, got 30"),
        (
            lambda: Trunk("resnet18,width=0.25")(torch.randn(3, 3, 32, 32), groups=2),
            "trunk_features: images must come in a multiple of groups = 2, got 3",
        ),
        (
            lambda: Trunk("resnet18,width=0.25")(torch.randn(3, 32, 32)),
            "trunk_features: images must have shape [B, 3, H, W], got [3, 32, 32]",
        ),
        (
            lambda: Trunk("resnet18,width=0.25")(torch.randn(1, 3, 16, 16)),
            "batch_norm: images must give more than one value for each channel and group",
        ),
        (
            lambda: Trunk("vit,width=8,heads=2,depth=1,patch=8,image=16")(torch.randn(1, 3, 20, 16)),
            "vit: images must have sides divisible by the patch, 8, got [1, 3, 20, 16]",
        ),
        (
            lambda: torch.ops.placket.trunk_features(torch.randn(1, 3, 32, 32), [], "resnet18"),
            "trunk_features: weights must hold 75 tensors in the order of the spec, got 0",
        ),
    ],
)
def test_errors_name_the_value(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
