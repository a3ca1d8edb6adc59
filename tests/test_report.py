from __future__ import annotations

import base64
import io
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from placket.explain import attention_overlay
from placket.report import (
    Section,
    curves_svg,
    gallery_html,
    intervals_svg,
    metric_curves,
    picture_html,
    table_html,
    write_report,
)

EVIL = '<script src="http://x">&"\''


class Page(HTMLParser):
    """Collects tags, and checks that each one is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def checkers(height: int = 30, width: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)


def pictures(page: str) -> list[Image.Image]:
    coded = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(c))) for c in coded]


def test_report_is_one_file_that_asks_nothing_of_anyone(tmp_path: Path):
    path = tmp_path / "report.html"
    body = (
        table_html([{EVIL: EVIL}])
        + curves_svg({EVIL: [(0, 1), (1, 2)]}, EVIL, EVIL)
        + gallery_html(checkers(), checkers(), Image.new("L", (9, 9)), [(checkers(), EVIL, True)], EVIL)
    )
    write_report(path, EVIL, [Section(EVIL, EVIL, body), Section("no body")], EVIL)
    page = Page(path.read_text(encoding="utf-8"))
    # Title and heading, subtitle, section and text, table twice, chart thrice, captions twice.
    assert page.text.count(EVIL) == 12
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "use", "image"}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert value is not None
                assert value.startswith("data:image/jpeg;base64,")
    style = re.search(r"<style>(.*?)</style>", path.read_text(), re.S)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "prefers-color-scheme: dark" in style[1]
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_table():
    rows = [
        {"name": "neck", "map": 1.23456, "interval": (1.0, 2.5)},
        {"name": "hem", "n": np.int64(3), "map": None},
    ]
    page = Page(table_html(rows, {"name": "attribute", "map": "MAP", "interval": "95 %", "n": "n"}))
    assert page.text == "attributeMAP95 %n" + "neck1.231.00 – 2.50" + "hem3"
    kinds = [a.get("class") for t, a in page.tags if t == "th"]
    assert kinds == [None, "number", "number", "number"]
    assert Page(table_html([])).text == ""
    assert Page(table_html(rows, ["map"], digits=4)).text == "map1.2346"
    assert Page(table_html([{"a": -0.001, "b": -0.01, "c": math.nan}])).text == "abc0.00-0.01nan"


def polylines(svg: str) -> list[list[tuple[float, float]]]:
    root = ElementTree.fromstring(svg)
    lines = [e.attrib["points"] for e in root.iter("polyline")]
    return [[tuple(map(float, p.split(","))) for p in line.split()] for line in lines]  # type: ignore[misc]


def test_curves_are_to_scale():
    svg = curves_svg({"a": [(0, 0.0), (50, 10.0), (100, 5.0)], "b": [(0, 10.0), (100, 10.0)]}, "loss")
    a, b = polylines(svg)
    assert a[1][0] == pytest.approx((a[0][0] + a[2][0]) / 2)
    assert a[2][1] == pytest.approx((a[0][1] + a[1][1]) / 2, abs=0.06)  # coordinates have one decimal
    assert a[0][1] > a[1][1] == b[0][1] == b[1][1]
    texts = [e.text for e in ElementTree.fromstring(svg).iter("text")]
    assert texts[:7] == ["loss", "0", "2", "4", "6", "8", "10"]
    assert {"a", "b", "step", "100"} <= set(texts)


def test_curves_of_difficult_points():
    broken = polylines(curves_svg({"a": [(0, 1), (1, math.nan), (2, 1), (3, 2), (4, math.inf)]}, "x"))
    assert [len(line) for line in broken] == [2, 2]  # a lone point is a short stroke
    assert polylines(curves_svg({"a": [(3, 7), (4, 7)], "b": []}, "flat"))[0][0][1] > 0
    assert "no points" in curves_svg({"a": [(0, math.nan)]}, "x")
    long = polylines(curves_svg({"a": [(i, i % 2) for i in range(96_000)]}, "x"))
    assert 700 <= len(long[0]) <= 800
    assert len({y for _, y in long[0]}) == 1  # the mean of every stretch is the same
    tiny = [
        e.text for e in ElementTree.fromstring(curves_svg({"a": [(0, 1e-7), (1, 3e-7)]}, "x")).iter("text")
    ]
    assert "2e-07" in tiny


def test_metric_curves():
    metrics = [{"step": 1, "loss": 2.0}, {"step": 2, "rate": 0.1}, {"step": 3, "loss": 1, "rate": None}]
    assert metric_curves(metrics, ["loss", "rate"]) == {
        "loss": [(1.0, 2.0), (3.0, 1.0)],
        "rate": [(2.0, 0.1)],
    }


def test_gallery_marks_right_and_wrong():
    hits = [(checkers(), "one", True), (checkers(), "two", False), (checkers(), "three", None)]
    html = gallery_html(checkers(400, 100), None, checkers(), hits)
    kinds = [a["class"] for t, a in Page(html).tags if t == "figure"]
    assert kinds == ["", "", "right", "wrong", ""]
    assert [a["alt"] for t, a in Page(html).tags if t == "img"] == ["query", "crop", "one", "two", "three"]
    assert Page(html).text == "querycrop✓ one✗ twothree"
    assert [p.size for p in pictures(html)] == [(50, 200), *[(20, 30)] * 4]


def test_picture_keeps_its_colours():
    picture = np.full((40, 40, 3), (200, 30, 60), dtype=np.uint8)
    (back,) = pictures(picture_html(picture))
    assert np.abs(np.asarray(back).astype(int) - picture).max() <= 3  # JPEG of one colour


def test_overlay_puts_heat_where_the_attention_is():
    picture = np.full((80, 60, 3), 100, dtype=np.uint8)
    attention = torch.zeros(8, 6)
    attention[6, 1] = 1.0  # its cell is x 10 to 20, y 60 to 70
    over = attention_overlay(picture, attention).astype(int)
    bright = over.sum(2)
    assert np.unravel_index(bright.argmax(), bright.shape)[0] in range(62, 68)
    assert np.unravel_index(bright.argmax(), bright.shape)[1] in range(12, 18)
    assert (over[:50, 30:] == 100).all()


def test_overlay_window_box_and_regions():
    picture = np.full((40, 100, 3), 80, dtype=np.uint8)
    attention = np.zeros((4, 4))
    attention[:, 3] = 1
    over = attention_overlay(
        picture, attention, (35, 5, 50, 20), window=(30, 0, 70, 40), regions=[(62, 25, 68, 33)]
    )
    assert (over[:, :29] == 40).all()  # outside of the window: darkened
    assert (over[:, 71:] == 40).all()
    assert (over[5, 35:50] == 255).all()
    assert (over[19, 35:50] == 255).all()
    assert (over[5:20, [35, 49]] == 255).all()
    assert (over[25, 62:68] == (60, 220, 90)).all()
    assert (over[22, 38:50] == 80).all()  # no attention there
    assert (over[35, 69] != 80).any()


def test_flat_attention_changes_nothing():
    picture = checkers()
    over = attention_overlay(picture, np.full((7, 7), 0.3))
    assert (over == picture).all()
    over[:] = 0  # a copy: the picture is not touched, and the result can be written
    assert picture.any()
    assert (attention_overlay(picture, np.eye(3), strength=0) == picture).all()


def test_overlay_errors():
    picture = checkers()
    for args, options, message in [
        (
            (picture.astype(float), np.eye(2)),
            {},
            r"picture must be uint8 of shape \[H, W, 3\], got float64 \[30, 20, 3\]",
        ),
        ((picture[..., 0], np.eye(2)), {}, r"picture must be uint8 .* got uint8 \[30, 20\]"),
        (
            (picture, np.eye(2) * np.nan),
            {},
            r"attention must be finite .* got \[2, 2\] with 4 that are not finite",
        ),
        ((picture, np.ones(3)), {}, r"attention must be .* of shape \[h, w\], got \[3\]"),
        ((picture, np.eye(2)), {"strength": 2}, r"strength must be in \[0, 1\], got 2"),
        ((picture, np.eye(2), (5, 5, 5, 9)), {}, r"boxes must have x0 < x1 and y0 < y1, got \[5, 5, 5, 9\]"),
        (
            (picture, np.eye(2)),
            {"window": (3, 0, 1, 9)},
            r"window must have x0 < x1 and y0 < y1, got \(3, 0, 1, 9\)",
        ),
    ]:
        with pytest.raises(ValueError, match="attention_overlay: " + message):
            attention_overlay(*args, **options)


def test_intervals_lie_where_the_scale_says() -> None:
    rows = [
        (EVIL, {"one": (30.0, (20.0, 40.0)), "two": (50.0, (45.0, 60.0))}),
        ("last", {"two": (80.0, (70.0, 95.0))}),
    ]
    root = ElementTree.fromstring(intervals_svg(rows, "figures", {"chance": 25.0}))
    svg = "{http://www.w3.org/2000/svg}"
    ticks = {
        float(text.text): float(text.get("x"))
        for text in root.iter(f"{svg}text")
        if text.get("text-anchor") == "middle"
    }
    low, high = min(ticks), max(ticks)
    assert low <= 20
    assert high >= 95

    def at(x: float) -> float:
        return ticks[low] + (x - low) / (high - low) * (ticks[high] - ticks[low])

    dots = [float(dot.get("cx")) for dot in root.iter(f"{svg}circle") if dot.get("r") == "3.5"]
    assert dots == pytest.approx([at(30), at(50), at(80)], abs=0.1)
    lines = [
        (float(line.get("x1")), float(line.get("x2")))
        for line in root.iter(f"{svg}line")
        if "stroke-width" in (line.get("style") or "")
    ]
    ends = [(at(20), at(40)), (at(45), at(60)), (at(70), at(95))]
    assert np.array(lines) == pytest.approx(np.array(ends), abs=0.1)
    (chance,) = (line for line in root.iter(f"{svg}line") if line.get("stroke-dasharray"))
    assert float(chance.get("x1")) == pytest.approx(at(25), abs=0.1)
    assert [text.text for text in root.iter(f"{svg}text")].count(EVIL) == 1
