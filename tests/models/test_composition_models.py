"""Compositions against their formulas, and what they promise about shares, tokens and exports."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from placket import reference
from placket.nn import Composed, Composition

DIMS = 24
AGCN = "agcn,layers=2,heads=4,hidden=40"
COMBINER = "combiner,projection=32,hidden=48"
SHALLOW = "agcn,layers=1,heads=2,hidden=16,dropout=0"  # where tracing costs more than computing
LEARNED = (AGCN, "tirg", COMBINER)
PLAIN = ("sum", "image", "text")


def make(name: str, seed: int = 0, dims: int = DIMS) -> Composition:
    """A composition with weights so large that gates are far from 1/2, and with statistics."""
    random = torch.Generator().manual_seed(seed)
    model = Composition(name, dims, random)
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=random)
        elif not key.endswith("scale"):
            nn.init.normal_(tensor, std=0.3, generator=random)
    return model.eval()


def given(n: int = 5, tokens: bool = False, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Image and text, and seven and four tokens beside them; the last row has one word."""
    rows = {"image": torch.randn(n, DIMS, dtype=dtype), "text": torch.randn(n, DIMS, dtype=dtype)}
    if tokens:
        rows["image_tokens"] = torch.randn(n, 7, DIMS, dtype=dtype)
        rows["text_tokens"] = torch.randn(n, 4, DIMS, dtype=dtype)
        rows["text_mask"] = torch.arange(4) <= (torch.arange(n) * 2 + 1 - n % 2)[:, None] % 4
        rows["text_mask"][-1] = torch.arange(4) < 1
    return rows


def by_formulas(model: Composition, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    weights = dict(model.named_parameters()) | dict(model.named_buffers())
    if model.name.startswith("agcn"):
        return reference.agcn_composition(weights=weights, layers=2, heads=4, **rows)
    if model.name == "tirg":
        return reference.tirg_composition(**rows, weights=weights, batch_statistics=model.training)
    return reference.combiner_composition(**rows, weights=weights)


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize(
    ("name", "tokens"), [(AGCN, False), (AGCN, True), ("tirg", False), (COMBINER, False)]
)
def test_equals_its_formulas(name: str, tokens: bool, n: int) -> None:
    model = make(name).double()
    rows = given(n, tokens, torch.float64)
    differentiable = [x.requires_grad_() for x in rows.values() if x.is_floating_point()]
    parameters = [*model.parameters(), *differentiable]
    ours, expected = model(**rows), by_formulas(model, rows)
    torch.testing.assert_close(tuple(ours), expected)
    probe = torch.randn_like(expected[0])
    gradients = [torch.autograd.grad((query * probe).sum(), parameters) for query, _ in (ours, expected)]
    torch.testing.assert_close(*gradients)
    assert not ours.image_share.requires_grad


@pytest.mark.parametrize("name", LEARNED)
def test_single_precision_stays_within_1e_5(name: str) -> None:
    model, rows = make(name), given()
    torch.testing.assert_close(tuple(model(**rows)), by_formulas(model, rows), atol=1e-5, rtol=0)


def test_tirg_in_training_takes_and_tracks_the_batch() -> None:
    model = make("tirg").double().train()
    rows = given(dtype=torch.float64)
    expected = by_formulas(model, rows)
    norm = nn.BatchNorm1d(2 * DIMS, dtype=torch.float64)
    norm.load_state_dict(model.get_submodule("gate.norm").state_dict(), strict=False)
    norm(torch.cat([F.normalize(rows[side]) * DIMS**0.5 for side in ("image", "text")], 1))
    torch.testing.assert_close(tuple(model(**rows)), expected)
    torch.testing.assert_close(model.get_buffer("gate.norm.running_mean"), norm.running_mean)
    torch.testing.assert_close(model.get_buffer("gate.norm.running_var"), norm.running_var)


def test_tirg_starts_with_the_scales_of_the_paper() -> None:
    model = Composition("tirg", DIMS)
    assert model.get_parameter("image_scale").tolist() == [1]
    assert model.get_parameter("residual_scale").tolist() == [10]


def test_plain_compositions() -> None:
    rows = given()
    image, text = (F.normalize(rows[side]) for side in ("image", "text"))
    expected = {"sum": (F.normalize(image + text), 0.5), "image": (image, 1.0), "text": (text, 0.0)}
    for name, (query, share) in expected.items():
        model = Composition(name, DIMS)
        assert not list(model.parameters())
        torch.testing.assert_close(tuple(model(**rows)), (query, torch.full((5,), share)))


@pytest.mark.parametrize("tokens", [False, True])
def test_agcn_starts_from_the_sum(tokens: bool) -> None:
    rows = given(tokens=tokens)
    start, plain = Composition(AGCN, DIMS).eval()(**rows), Composition("sum", DIMS)(**rows)
    torch.testing.assert_close(tuple(start), tuple(plain))


@pytest.mark.parametrize(
    ("name", "moves"),
    [(AGCN, {"gate.bias": 1e4, "selection.bias": -1e4}), (COMBINER, {"scalar.fc2.bias": -1e4})],
)
def test_share_follows_the_gates(name: str, moves: dict[str, float]) -> None:
    model, rows = make(name), given()
    free = model(**rows).image_share
    assert ((free > 0) & (free < 1)).all()
    for sign, share in ((1, 1.0), (-1, 0.0)):
        for key, value in moves.items():
            nn.init.constant_(model.get_parameter(key), sign * value)
        torch.testing.assert_close(model(**rows).image_share, torch.full((5,), share))


def test_share_of_tirg_follows_its_scales() -> None:
    model, rows = make("tirg"), given()
    nn.init.zeros_(model.get_parameter("residual_scale"))
    assert model(**rows).image_share.tolist() == [1] * 5
    nn.init.ones_(model.get_parameter("residual_scale"))
    nn.init.zeros_(model.get_parameter("image_scale"))
    assert model(**rows).image_share.tolist() == [0] * 5


@pytest.mark.parametrize("name", [*LEARNED, *PLAIN])
def test_queries_are_unit_rows_and_lengths_do_not_matter(name: str) -> None:
    model, rows = make(name), given(tokens=True)
    query, share = model(**rows)
    torch.testing.assert_close(query.norm(dim=1), torch.ones(5))
    assert ((share >= 0) & (share <= 1)).all()
    longer = {key: x * 7 if x.is_floating_point() else x for key, x in rows.items()}
    torch.testing.assert_close(tuple(model(**longer)), (query, share))


@pytest.mark.parametrize("name", [*LEARNED, *PLAIN])
def test_rows_of_zeros_stay_finite(name: str) -> None:
    model, rows = make(name), given()
    rows["text"][0] = rows["image"][1] = 0
    rows["text"][2] = rows["image"][2] = 0
    leaves = [x.requires_grad_() for x in rows.values()]
    query, share = model(**rows)
    assert query.isfinite().all()
    assert share.isfinite().all()
    assert all(x.isfinite().all() for x in torch.autograd.grad(query.sum(), leaves, materialize_grads=True))
    if name == "sum":
        assert share[:3].tolist() == [1, 0, 0.5]


def test_agcn_masked_tokens_have_no_influence() -> None:
    model, rows = make(AGCN), given(tokens=True)
    expected = model(**rows)
    assert not rows["text_mask"].all()
    changed = rows["text_tokens"].masked_fill(~rows["text_mask"][..., None], 1000.0)
    assert torch.equal(model(**rows | {"text_tokens": changed}).query, expected.query)
    # A row whose tokens are all masked is one without tokens.
    nowhere = torch.zeros_like(rows["text_mask"])
    without = {key: x for key, x in rows.items() if not key.startswith("text_")}
    torch.testing.assert_close(tuple(model(**rows | {"text_mask": nowhere})), tuple(model(**without)))
    everywhere = {key: x for key, x in rows.items() if key != "text_mask"}
    torch.testing.assert_close(
        tuple(model(**rows | {"text_mask": torch.ones_like(nowhere)})), tuple(model(**everywhere))
    )


@pytest.mark.parametrize("side", ["image", "text"])
def test_agcn_reads_the_tokens_of_either_side(side: str) -> None:
    model, rows = make(AGCN), given(tokens=True)
    before = model(**rows).query
    rows[f"{side}_tokens"][:, 0] = torch.randn(DIMS)
    assert ((model(**rows).query - before).norm(dim=1) > 1e-3).all()
    one = {key: x for key, x in rows.items() if key in ("image", "text", f"{side}_tokens")}
    assert model(**one).query.shape == (5, DIMS)


@pytest.mark.parametrize("name", ["tirg", COMBINER, *PLAIN])
def test_others_leave_the_tokens(name: str) -> None:
    model, rows = make(name), given(tokens=True)
    assert torch.equal(model(**rows).query, model(rows["image"], rows["text"]).query)


@pytest.mark.parametrize("name", [AGCN, COMBINER])
def test_dropout_is_on_in_training_alone(name: str) -> None:
    model, rows = make(name), given()
    assert torch.equal(model(**rows).query, model(**rows).query)
    model.train()
    assert not torch.equal(model(**rows).query, model(**rows).query)
    still = make(f"{name},dropout=0").train()
    torch.testing.assert_close(still(**rows).query, make(f"{name},dropout=0")(**rows).query)


def test_sizes() -> None:
    with torch.device("meta"):
        agcn = Composition("agcn", 512)
        combiner = Composition("combiner", 640)
    side = 8 * 512 * 512 + 2 * 512 * 2048 + 3 * 2 * 512 + 8 * 512 + 2048 + 512
    assert sum(p.numel() for p in agcn.parameters()) == 4 * side + 512 * (3 * 512 + 1) + 2 * 512 + 1
    # The authors' sizes for RN50x4: projection 2560, hidden 5120.
    assert combiner.get_parameter("text_projection.weight").shape == (2560, 640)
    assert combiner.get_parameter("combiner.fc1.weight").shape == (5120, 5120)


@pytest.mark.parametrize("name", [*LEARNED, *PLAIN])
def test_copies_pickles_saves_and_loads(name: str, tmp_path: Path) -> None:
    model, rows = make(name), given(tokens=True)
    model.save(tmp_path)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), Composition.load(tmp_path)):
        assert (other.name, other.dims, other.training) == (name, DIMS, False)
        assert torch.equal(other(**rows).query, model(**rows).query)


def test_load_refuses_other_checkpoints(tmp_path: Path) -> None:
    make(AGCN).save(tmp_path)
    make("tirg").save(tmp_path / "tirg")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "tirg" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"must hold the model's 92 tensors, got 'gate.bias' missing"):
        Composition.load(tmp_path)
    (tmp_path / "config.json").write_text('{"format": 1, "model": {}}')
    with pytest.raises(ValueError, match="must hold a composition's checkpoint, got the keys format, model"):
        Composition.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("agc", "composition: name must be one of agcn, tirg, combiner, sum, image, text, got 'agc'"),
        ("agcn,depth=2", "setting must be one of layers, heads, hidden, dropout, got 'depth'"),
        ("agcn,layers=0", "layers must be an integer of at least 1, got '0'"),
        ("agcn,heads=5", "agcn: heads must divide the 24 dimensions of the features, got 5"),
        ("combiner,dropout=2", "dropout must be a number from 0 to 1, got '2'"),
        ("tirg,heads=2", "setting must be one of , got 'heads'"),
    ],
)
def test_description_errors(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Composition(name, DIMS)


def test_input_errors() -> None:
    model, rows = make(AGCN), given(tokens=True)
    wrong: list[tuple[dict[str, Tensor | None], str]] = [
        ({"image": rows["image"][0]}, r"compose: image must have shape \[N, D\], got \[24\]"),
        ({"text": rows["text"][:4]}, r"text must have shape \[N, D\] like image, \[5, 24\], got \[4, 24\]"),
        (
            {"image_tokens": rows["image_tokens"][..., :23]},
            r"image_tokens must have shape \[N, P, D\] with the N and D of image, .* got \[5, 7, 23\]",
        ),
        (
            {"text_tokens": rows["text_tokens"][:2]},
            r"text_tokens must have shape \[N, L, D\] with the N and D of image, \[5, 24\], got \[2, 4, 24\]",
        ),
        (
            {"text_mask": rows["text_mask"][:, :3]},
            r"text_mask must have shape \[N, L\] like text_tokens, \[5, 4, 24\], got \[5, 3\]",
        ),
        ({"text_tokens": None}, r"text_mask must be left out without text_tokens, got \[5, 4\]"),
    ]
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            model(**rows | change)
    with pytest.raises(TypeError, match="text_mask must be Bool, got Float"):
        model(**rows | {"text_mask": rows["text_mask"].float()})
    with pytest.raises(ValueError, match="weights must hold 92 tensors in the order of the spec, got 0"):
        torch.ops.placket.compose(rows["image"], rows["text"], None, None, None, [], AGCN)
    with pytest.raises(ValueError, match="image must have more than one row in training of TIRG"):
        make("tirg").train()(rows["image"][:1], rows["text"][:1])


@pytest.mark.parametrize("name", [*LEARNED, *PLAIN])
def test_no_queries(name: str) -> None:
    query, share = make(name)(torch.empty(0, DIMS), torch.empty(0, DIMS))
    assert (query.shape, share.shape) == ((0, DIMS), (0,))


@pytest.mark.parametrize("name", LEARNED)
def test_bfloat16_and_autocast(name: str) -> None:
    rows = given(tokens=True)
    exact = make(name)(**rows).query
    with torch.autocast("cpu", torch.bfloat16):
        mixed = make(name)(**rows).query
    low = {key: x.bfloat16() if x.is_floating_point() else x for key, x in rows.items()}
    narrow = make(name).bfloat16()(**low).query
    assert narrow.dtype == torch.bfloat16
    # Two layers of matrices in 8 bits: a cosine of 0.99 is a few roundings away.
    for query in (mixed.float(), narrow.float()):
        assert (F.cosine_similarity(query, exact) > 0.99).all()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "name", [pytest.param(SHALLOW, marks=pytest.mark.slow), "tirg", f"{COMBINER},dropout=0"]
)
def test_compiles_without_breaks(name: str, training: bool) -> None:
    compiles(name, training, "aot_eager")  # graph and gradients as for every backend, without C++ to compile


@pytest.mark.skipif(
    os.environ.get("PLACKET_LONG_TESTS") != "1", reason="takes many minutes (PLACKET_LONG_TESTS=1)"
)
def test_compiles_to_machine_code() -> None:
    compiles(SHALLOW, True, "inductor")


def compiles(name: str, training: bool, backend: str) -> None:
    """Compare results, gradients and statistics with eager mode's, for two sizes of the batch."""
    model, other = make(name).train(training), make(name).train(training)
    compiled = torch.compile(other, fullgraph=True, dynamic=True, backend=backend)
    tokens = name.startswith("agcn")
    for n in (4, 6):
        rows = given(n, tokens)
        probe = torch.randn(n, DIMS)
        results = []
        for run, owner in ((model, model), (compiled, other)):
            owner.zero_grad()
            query, share = run(**rows)
            (query * probe).sum().backward()
            results.append([query, share, *(p.grad for p in owner.parameters()), *owner.buffers()])
        torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)  # sums in another order


def dynamic(rows: dict[str, Tensor]) -> dict[str, Any]:
    return {key: {0: torch.export.Dim.DYNAMIC} for key in rows}


@pytest.mark.parametrize(
    ("name", "tokens"), [(AGCN, False), (AGCN, True), ("tirg", False), (COMBINER, False), ("sum", True)]
)
def test_exports_with_a_dynamic_batch(name: str, tokens: bool) -> None:
    model, rows = make(name), given(3, tokens)
    program = torch.export.export(model, (), rows, dynamic_shapes=dynamic(rows))
    lowered = program.run_decompositions()
    called = {node.target for node in lowered.graph.nodes if node.op == "call_function"}
    assert all(getattr(op, "namespace", "aten") in ("aten", "placket") for op in called)
    assert torch.ops.placket.compose.default not in called
    for n in (2, 8):
        more = given(n, tokens)
        torch.testing.assert_close(tuple(lowered.module()(**more)), tuple(model(**more)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tokens"), [(AGCN, True), ("tirg", False), (COMBINER, False)])
def test_exports_to_onnx(name: str, tokens: bool, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, rows = make(name), given(3, tokens)
    program = torch.export.export(model, (), rows, dynamic_shapes=dynamic(rows))
    plain = program.run_decompositions(reference.decompositions())
    torch.onnx.export(plain, (), tmp_path / "model.onnx", kwargs=rows, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    for n in (1, 7):
        more = given(n, tokens)
        found = session.run(None, {key: more[key].numpy() for key in names})
        expected: Composed = model(**more)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), theirs.detach(), atol=1e-4, rtol=0)


def test_runs_on_a_side_of_the_caller(tmp_path: Path) -> None:
    """A composition is a module like any other: in a network of the caller's, its names stand below."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image = nn.Linear(8, DIMS)
            self.composition = Composition(AGCN, DIMS)

        def forward(self, pixels: Tensor, text: Tensor) -> Tensor:
            composed: Composed = self.composition(self.image(pixels), text)
            return composed.query

    network = Network()
    names = list(network.state_dict())
    assert "composition.layers.1.text.mlp.fc2.weight" in names
    assert "composition.gate.weight" in names
    network(torch.randn(4, 8), torch.randn(4, DIMS)).sum().backward()
    assert network.image.weight.grad is not None
