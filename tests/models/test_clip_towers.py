"""CLIP's towers by themselves: compiled, exported, in low precision, at the edges of what they take."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_peers import assert_near, randomize, texts
from torch import Tensor, nn

import placket
from placket.nn import Clip, ClipImageEncoder, ClipTextEncoder, Trunk

VIT = "clip_vit,width=32,depth=2,heads=4,patch=8,image=32,embedding_dim=20"
RESNET = "clip_resnet,layers=1/2/1/1,width=8,heads=4,image=64,embedding_dim=20"
TRUNK = "resnet18,width=0.25,stage=2,embedding_dim=20"
TEXT = "clip_text,width=24,depth=3,heads=3,context=12,vocabulary=99,embedding_dim=20"
IMAGES = pytest.mark.parametrize("image", [VIT, RESNET, TRUNK], ids=["vit", "resnet", "trunk"])


def make(image: str = VIT, text: str = TEXT) -> Clip:
    model = Clip(image, text)
    randomize(model)
    return model.eval()


@IMAGES
def test_tokens_begin_with_the_embedding(image: str) -> None:
    model = make(image)
    images = torch.randn(2, 3, 64, 96)
    out = model.image_tokens(images)
    assert torch.equal(out.tokens[:, 0], out.embedding)
    # Without the tokens a ViT's last block computes one alone.
    assert_near(model.encode_image(images), out.embedding)
    positions = {VIT: 8 * 12, RESNET: 2 * 3, TRUNK: 8 * 12}[image]
    assert out.tokens.shape == (2, 1 + positions, 20)


def test_trunk_tower_projects_the_map() -> None:
    model = make(TRUNK)
    trunk = Trunk("resnet18,width=0.25,stage=2").eval()
    trunk.load_state_dict(model.get_submodule("visual.trunk").state_dict())
    weight = model.state_dict()["visual.head.proj.weight"]
    images = torch.randn(2, 3, 32, 48)
    features = trunk(images)
    out = model.image_tokens(images)
    assert_near(out.embedding, features.mean((2, 3)) @ weight.T)
    assert_near(out.tokens[:, 1:], features.flatten(2).transpose(1, 2) @ weight.T)
    assert model.preprocess["mean"] == list(trunk.mean)


def test_text_tokens_end_in_the_embedding() -> None:
    model, ids = make(), texts()
    out, end = model.text_tokens(ids)
    assert torch.equal(end, torch.tensor([11, 9, 7, 5, 3]))
    assert torch.equal(out.tokens[torch.arange(5), end], out.embedding)
    assert_near(model.encode_text(ids), out.embedding)


def test_what_follows_the_end_changes_nothing() -> None:
    model, ids = make(), texts()
    expected = model.encode_text(ids)
    other = ids.clone()
    other[4, 4:] = torch.randint(1, 90, (8,))
    assert_near(model.encode_text(other), expected)
    assert_near(model.encode_text(ids[1:, :10]), expected[1:])
    assert_near(model.encode_text(ids[4:, :4]), expected[4:])


def test_edges_of_texts() -> None:
    model = make()
    one, end = model.text_tokens(torch.tensor([[98], [3]]))
    assert one.tokens.shape == (2, 1, 20)
    assert end.tolist() == [0, 0]
    padding = torch.zeros(2, 12, dtype=torch.long)
    assert_near(model.encode_text(padding), model.encode_text(padding[:, :1]))
    ids = texts()
    assert torch.equal(model.encode_text(ids.int()), model.encode_text(ids))
    assert model.encode_text(ids[:0]).shape == (0, 20)


def test_normalises() -> None:
    model = make()
    images, ids = torch.randn(3, 3, 32, 32), texts(3)
    out = model(images, ids)
    assert_near(out.image, nn.functional.normalize(model.encode_image(images), dim=-1))
    assert_near(out.text, nn.functional.normalize(model.encode_text(ids), dim=-1))
    assert_near(out.scale, torch.tensor(math.exp(3.0)))


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_gradients_agree_with_differences(activation: str) -> None:
    both = f"width=4,depth=2,heads=2,mlp=6,embedding_dim=3,activation={activation}"
    image, text = f"clip_vit,{both},patch=2,image=4", f"clip_text,{both},context=4,vocabulary=9"
    model = make(image, text).double()
    ids = texts(2, 4, 9)
    names = [name for name, _ in model.named_parameters()]

    def embed(images: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        given = dict(zip(names, parameters, strict=True))
        call = torch.func.functional_call
        out = call(Tokens(model), {f"model.{k}": v for k, v in given.items()}, (images, ids))
        return tuple(out)  # type: ignore[return-value]

    images = torch.randn(2, 3, 4, 6, dtype=torch.double, requires_grad=True)
    parameters = [p.detach().clone().requires_grad_() for p in model.parameters()]
    assert torch.autograd.gradcheck(embed, (images, *parameters), fast_mode=True)


class Tokens(nn.Module):
    """Embeddings with and without tokens."""

    def __init__(self, model: Clip) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        return (
            model.encode_image(images),
            model.image_tokens(images).tokens,
            model.encode_text(ids),
            model.text_tokens(ids)[0].tokens,
        )


@pytest.mark.parametrize("training", [False, True])
@IMAGES
def test_compiles_whole(image: str, training: bool) -> None:
    model = make(image).train(training)
    other = make(image).train(training)
    other.load_state_dict(model.state_dict())
    compiled = torch.compile(Tokens(model), fullgraph=True, backend="aot_eager")
    images, ids = torch.randn(3, 3, 64, 64), texts(3)
    ours, expected = compiled(images, ids), Tokens(other)(images, ids)
    for mine, theirs in zip(ours, expected, strict=True):
        assert_near(mine, theirs, 1e-4)
    sum(x.square().mean() for x in ours).backward()
    sum(x.square().mean() for x in expected).backward()
    # Both passes of BatchNorm's statistics and float32's roundings: relative to the largest gradient.
    for (name, parameter), copied in zip(model.named_parameters(), other.parameters(), strict=True):
        if name != "logit_scale":
            assert_near(parameter.grad, copied.grad, 1e-3 if training else 1e-4)
    assert_near(compiled(images[:2], ids[:2])[0], Tokens(other)(images[:2], ids[:2])[0], 1e-4)


def exported(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},)).run_decompositions()
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("tower" in name or "trunk_features" in name for name in operators)
    return program


@IMAGES
def test_image_tower_exports_with_a_dynamic_batch(image: str) -> None:
    encoder = ClipImageEncoder(make(image)).eval()
    program = exported(encoder, torch.randn(2, 3, 64, 64))
    for count in (1, 5):
        images = torch.randn(count, 3, 64, 64)
        assert_near(program.module()(images), encoder(images))


@pytest.mark.parametrize("pool", ["argmax", "eos"])
def test_text_tower_exports_with_a_dynamic_batch(pool: str) -> None:
    encoder = ClipTextEncoder(make(text=f"{TEXT},pool={pool}")).eval()
    program = exported(encoder, texts())
    for rows in (1, 4):
        ids = texts(rows)
        assert_near(program.module()(ids), encoder(ids))


def test_text_tower_exports_with_a_dynamic_length() -> None:
    encoder = ClipTextEncoder(make()).eval()
    shape = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=2, max=12)}
    program = torch.export.export(encoder, (texts(3, 8),), dynamic_shapes=(shape,))
    for length in (2, 5, 12):
        ids = texts(4, length)
        assert_near(program.module()(ids), encoder(ids))


@pytest.mark.slow
@IMAGES
def test_image_tower_in_onnx(image: str, tmp_path: Path) -> None:
    in_onnx(ClipImageEncoder(make(image), normalize=False), torch.randn(2, 3, 64, 64), tmp_path)


@pytest.mark.slow
def test_text_tower_in_onnx(tmp_path: Path) -> None:
    in_onnx(ClipTextEncoder(make(), normalize=False), texts(2), tmp_path)


def in_onnx(encoder: nn.Module, example: Tensor, folder: Path) -> None:
    """Onnxruntime computes the same, also of another batch size."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    path = folder / "tower.onnx"
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.onnx.export(
        encoder.eval(), (example,), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (given.name for given in session.get_inputs())
    for given in (example, torch.cat([example.flip(0), example, example])):
        (out,) = session.run(None, {name: given.numpy()})
        expected = encoder(given).detach()
        assert np.abs(out - expected.numpy()).max() <= 1e-4 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@IMAGES
def test_low_precision_is_as_near_as_rounding(image: str, dtype: torch.dtype) -> None:
    model = make(image)
    images, ids = torch.randn(4, 3, 64, 64), texts(4)
    exact = model.encode_image(images), model.encode_text(ids)
    with torch.autocast("cpu", dtype):
        autocast = model.encode_image(images), model.encode_text(ids)
    cast = make(image).to(dtype)
    cast.load_state_dict(model.state_dict())
    plain = cast.encode_image(images.to(dtype)), cast.encode_text(ids)
    # Some roundings one after another (measured: up to 3.2), of 2^-8 (bfloat16) or 2^-11 of the largest
    # entry each.
    allowed = 6 * (2**-8 if dtype == torch.bfloat16 else 2**-11)
    for outs in (autocast, plain):
        for out, expected in zip(outs, exact, strict=True):
            assert out.dtype == dtype
            assert (out - expected).abs().max() <= allowed * expected.abs().max()


def test_autocast_trains() -> None:
    model = make().train()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(torch.randn(4, 3, 32, 32), texts(4))
        loss = (out.scale * out.image @ out.text.T).float().logsumexp(1).mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("image", [RESNET, TRUNK])
def test_groups_equal_separate_passes(image: str) -> None:
    merged, separate = (make(image).double().train() for _ in range(2))
    separate.load_state_dict(merged.state_dict())
    images = torch.randn(6, 3, 64, 64, dtype=torch.double)
    expected = torch.cat([separate.encode_image(part) for part in images.chunk(3)])
    assert_near(merged.encode_image(images, groups=3), expected, 1e-9)
    torch.testing.assert_close(merged.state_dict(), separate.state_dict())


def test_frozen_batch_norm_keeps_statistics() -> None:
    model = make(RESNET).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.freeze_batch_norm = True
    images = torch.randn(2, 3, 64, 64)
    frozen = model.encode_image(images)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(frozen, model.eval().encode_image(images))


@IMAGES
def test_round_trip(image: str, tmp_path: Path) -> None:
    model = make(image)
    model.preprocess["size"] = 96
    model.save(tmp_path)
    loaded = Clip.load(tmp_path)
    assert (loaded.image, loaded.text, loaded.preprocess) == (model.image, model.text, model.preprocess)
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    placket.data.Preprocess(**loaded.preprocess)
    with pytest.raises(ValueError, match=r"got 'clip', which placket.nn.Clip.load reads"):
        placket.load(tmp_path)


def test_names_are_those_of_openai() -> None:
    names = set(Clip(VIT, TEXT).state_dict())
    block = ("ln_1", "attn.in_proj_", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    leaves = ("weight", "bias")
    expected = {
        f"{tower}transformer.resblocks.{i}.{part}{'' if part.endswith('_') else '.'}{leaf}"
        for tower, depth in (("visual.", 2), ("", 3))
        for i in range(depth)
        for part in block
        for leaf in leaves
    }
    expected |= {
        f"{part}.{leaf}" for part in ("visual.ln_pre", "visual.ln_post", "ln_final") for leaf in leaves
    }
    expected |= {
        "visual.class_embedding",
        "visual.positional_embedding",
        "visual.conv1.weight",
        "visual.proj",
    }
    expected |= {"token_embedding.weight", "positional_embedding", "text_projection", "logit_scale"}
    assert names == expected


def test_published_sizes() -> None:
    expected = {
        "clip_vit_b_32": 151_277_313,
        "clip_vit_b_16": 149_620_737,
        "clip_vit_l_14": 427_616_513,
        "clip_vit_l_14,image=336": 427_944_193,
        "clip_vit_h_14": 986_109_441,
        "clip_rn50": 102_007_137,
        "clip_rn101": 119_688_033,
        "clip_rn50x4": 178_300_601,
        "clip_rn50x16": 290_979_217,
        "clip_rn50x64": 623_258_305,
    }
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in Clip(name).parameters()) for name in expected}
    assert counts == expected


def test_initial_values() -> None:
    model = Clip("clip_vit,width=256,depth=2,patch=8,image=64", "clip_text,width=256,depth=2")
    state = model.state_dict()
    assert state["logit_scale"].item() == pytest.approx(math.log(1 / 0.07))
    width = 256**-0.5
    expected = {
        "token_embedding.weight": 0.02,
        "positional_embedding": 0.01,
        "text_projection": width,
        "visual.proj": width,
        "visual.positional_embedding": width,
        "transformer.resblocks.0.attn.in_proj_weight": width,
        "transformer.resblocks.1.attn.out_proj.weight": width / 2,
        "transformer.resblocks.0.mlp.c_fc.weight": 512**-0.5,
        "visual.transformer.resblocks.1.mlp.c_proj.weight": width / 2,
    }
    for name, scale in expected.items():
        assert state[name].std().item() == pytest.approx(scale, rel=0.03)
    assert not state["transformer.resblocks.0.attn.in_proj_bias"].any()
    resnet = Clip(RESNET, TEXT).state_dict()
    assert not resnet["visual.layer2.0.bn3.weight"].any()  # each block begins as its shortcut
    assert resnet["visual.bn3.weight"].eq(1).all()


def test_freezing_a_tower() -> None:
    model = make()
    model.visual.requires_grad_(False)
    model(torch.randn(2, 3, 32, 32), texts(2)).text.sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    text = {id(p) for p in model.text_parameters()}
    assert trained == {name for name, p in model.named_parameters() if id(p) in text}
    assert not any(name.startswith("visual.") for name in trained)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Clip("clip"),
            "image_tower: name must be clip_vit*, clip_rn*, clip_resnet or one of resnet18, resnet34,",
        ),
        (
            lambda: Clip("module,channels=8"),
            "got 'module' in 'module,channels=8'",
        ),
        (
            lambda: Clip("clip_vit_b_64"),
            (
                "image_tower: name must be one of clip_vit_b_32, clip_vit_b_16, clip_vit_l_14, "
                "clip_vit_h_14, clip_vit, got 'clip_vit_b_64'"
            ),
        ),
        (
            lambda: Clip("clip_rn18"),
            (
                "image_tower: name must be one of clip_rn50, clip_rn101, clip_rn50x4, clip_rn50x16, "
                "clip_rn50x64, clip_resnet, got 'clip_rn18'"
            ),
        ),
        (
            lambda: Clip("clip_vit,layers=2"),
            (
                "image_tower: setting must be one of width, depth, heads, mlp, activation, patch, image, "
                "embedding_dim, got 'layers'"
            ),
        ),
        (
            lambda: Clip("clip_rn50,layers=1/1/1/1"),
            "image_tower: setting must be one of width, heads, image, embedding_dim, got 'layers'",
        ),
        (
            lambda: Clip("resnet18,depth=3"),
            "trunk: setting must be one of stage, ibn, width, last_stride, got 'depth'",
        ),
        (lambda: Clip("clip_vit,depth=0"), "image_tower: depth must be an integer of at least 1, got '0'"),
        (
            lambda: Clip("clip_vit,activation=relu"),
            "image_tower: activation must be one of quick_gelu, gelu, got 'relu'",
        ),
        (
            lambda: Clip("clip_vit,width=30,heads=4"),
            "image_tower: width must be divisible by heads, 4, got 30 in 'clip_vit,width=30,heads=4'",
        ),
        (lambda: Clip("clip_vit,image=100"), "image_tower: image must be divisible by patch, 32, got 100"),
        (
            lambda: Clip("clip_resnet"),
            "image_tower: layers must be integers of at least 1 with / between them, got nothing",
        ),
        (lambda: Clip("clip_resnet,layers=1/1/1"), "image_tower: layers must be four numbers, got 3"),
        (lambda: Clip("clip_rn50,width=7"), "image_tower: width must be even, got 7"),
        (
            lambda: Clip("clip_rn50,heads=3"),
            "image_tower: heads must divide the map's channels, 2048, got 3",
        ),
        (lambda: Clip("clip_rn50,image=100"), "image_tower: image must be divisible by 32, got 100"),
        (lambda: Clip(VIT, "bert"), "text_tower: name must be clip_text, got 'bert'"),
        (
            lambda: Clip(VIT, "clip_text,patch=2"),
            (
                "text_tower: setting must be one of width, depth, heads, mlp, activation, context, "
                "vocabulary, embedding_dim, pool, got 'patch'"
            ),
        ),
        (
            lambda: Clip(VIT, "clip_text,eos_id=2"),
            "text_tower: setting must be one of width, depth,",
        ),
        (lambda: Clip(VIT, "clip_text,pool=last"), "text_tower: pool must be one of argmax, eos, got 'last'"),
        (
            lambda: Clip(VIT, "clip_text,vocabulary=9,pool=eos,eos_id=9"),
            "text_tower: eos_id must be less than vocabulary, 9, got 9",
        ),
        (
            lambda: Clip(VIT, "clip_text,embedding_dim=24"),
            (
                f"clip: both towers must have the same embedding_dim, got 20 of image '{VIT}' and 24 of text "
                "'clip_text,embedding_dim=24'"
            ),
        ),
        (
            lambda: make().encode_image(torch.randn(1, 3, 36, 32)),
            "clip_vit: images must have sides divisible by the patch, 8, got [1, 3, 36, 32]",
        ),
        (
            lambda: make(RESNET).encode_image(torch.randn(1, 3, 64, 31)),
            "clip_resnet: images must have sides of at least 32, got [1, 3, 64, 31]",
        ),
        (
            lambda: make().encode_image(torch.randn(3, 32, 32)),
            "image_tower: images must have shape [B, 3, H, W], got [3, 32, 32]",
        ),
        (
            lambda: make(RESNET).train().encode_image(torch.randn(3, 3, 64, 64), groups=2),
            "image_tower: images must come in a multiple of groups = 2, got 3",
        ),
        (
            lambda: make().encode_text(torch.zeros(2, 13, dtype=torch.long)),
            "text_tower: ids must have shape [B, L] with L from 1 to 12, got [2, 13]",
        ),
        (
            lambda: make().encode_text(torch.zeros(2, 0, dtype=torch.long)),
            "text_tower: ids must have shape [B, L] with L from 1 to 12, got [2, 0]",
        ),
        (
            lambda: make().encode_text(torch.zeros(2, dtype=torch.long)),
            "text_tower: ids must have shape [B, L] with L from 1 to 12, got [2]",
        ),
        (
            lambda: torch.ops.placket.image_tower(torch.randn(1, 3, 32, 32), [], VIT),
            "image_tower: weights must hold 32 tensors in the order of the spec, got 0",
        ),
        (
            lambda: torch.ops.placket.text_tower(texts(), [], TEXT),
            "text_tower: weights must hold 41 tensors in the order of the spec, got 0",
        ),
    ],
)
def test_errors_name_the_value(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_ids_are_integers() -> None:
    with pytest.raises(TypeError, match="text_tower: ids must be int64 or int32, got Float"):
        make().encode_text(torch.zeros(2, 12))
