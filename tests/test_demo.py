"""The demonstration from drawing to page, and the rivals, cut short."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import placket
from placket import demo
from placket.data import garments
from placket.explain import look


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    config = placket.load_config("demo")
    stages = tuple(replace(stage, epochs=1, batch=16) for stage in config.stages)
    out = tmp_path_factory.mktemp("demo") / "out"
    return demo.run(out, seed=3, items=150, config=replace(config, stages=stages), progress=False)


@pytest.mark.slow
def test_demo_leaves_everything(shown):
    folder = shown.page.parent
    page = shown.page.read_text(encoding="utf-8")
    data = placket.data.open(folder / "garments")
    for name in data.schema.names:
        assert f"Same {name}, anything else" in page
    # Three queries of six attributes, with overlay, crop and ten hits each.
    assert page.count("data:image/jpeg;base64,") == 3 * 6 * (3 + 10)
    assert "://" not in page
    # 18 queries with ten hits each, every one marked.
    right, wrong = page.count('<figure class="right">'), page.count('<figure class="wrong">')
    assert right + wrong == 180
    assert right > 0
    assert wrong > 0
    saved = json.loads((folder / "demo.json").read_text())
    assert list(saved["stages"]) == ["region", "patch"]
    assert saved["pixels"]["overall"] == shown.pixels.overall
    assert set(shown.pointing) == set(garments.LOCAL)
    assert len(placket.AttributeIndex.load(folder / "index")) == 24


@pytest.mark.slow
def test_demo_scores_are_those_of_its_checkpoints(shown):
    folder = shown.page.parent
    data = placket.data.open(folder / "garments")
    for stage, result in shown.stages.items():
        model = placket.load(folder / "run" / "stages" / stage)
        assert placket.evaluate(model, data, "test").overall == pytest.approx(result.overall, abs=1e-9)


@pytest.mark.slow
def test_look_agrees_with_the_model(shown):
    folder = shown.page.parent
    data = placket.data.open(folder / "garments")
    model, test = placket.load(folder / "run" / "best"), data.split("test")
    seen = look(model, test.paths[2], ["hem", "pattern"], box=test.boxes[2])
    rows = placket.embed_split(model, test)
    assert [one.attribute for one in seen] == ["hem", "pattern"]
    for one in seen:
        expected = rows[2, data.schema.index(one.attribute)]
        torch.testing.assert_close(torch.from_numpy(one.embedding), expected, atol=1e-5, rtol=0)
        assert one.attention.sum() == pytest.approx(1, abs=1e-5)
        x0, y0, x1, y1 = one.box
        assert one.crop().shape == (y1 - y0, x1 - x0, 3)
        assert one.overlay().shape == one.picture.shape


@pytest.mark.slow
def test_pointing_by_hand(shown):
    """Maps whose maximum lies at the centre of the true box, or in the corner of the input."""
    data = placket.data.open(shown.page.parent / "garments")
    model, test = placket.load(shown.page.parent / "run" / "best"), data.split("test")
    attribute, regions = data.schema.index("neckline"), data.regions("test")
    maps = torch.zeros(len(test), len(data.schema), 48, 48)
    maps[..., 0, 0] = 1
    neck = demo.evaluate_pointing(model, data, "test", maps)[0]["neckline"]
    assert neck == 0
    for image in range(len(test)):
        x0, y0, x1, y1 = regions[(regions[:, 0] == image) & (regions[:, 1] == attribute), 2:][0]
        seen = look(model, test.paths[image], ["neckline"], box=test.boxes[image])[0]
        left, top, right, bottom = seen.window
        column = int(((x0 + x1) / 2 - left) / (right - left) * 48)
        row = int(((y0 + y1) / 2 - top) / (bottom - top) * 48)
        maps[image, attribute, row, column] = 2
    assert demo.evaluate_pointing(model, data, "test", maps)[0]["neckline"] == 100


def test_demo_refuses_a_strange_folder(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"out must be .* got .* with thesis\.tex"):
        demo.run(tmp_path, items=60)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
