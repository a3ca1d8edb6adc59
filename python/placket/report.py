"""A report as one HTML file: curves, tables and pictures inside it, readable on light and dark screens.

The file asks nothing of any server; a content security policy in it forbids it. All text is escaped, except
what ``Section.body_html`` holds, which the functions here make.
"""

from __future__ import annotations

import base64
import html
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from placket import __version__
from placket.runs import write_text
from placket.tables import render

__all__ = [
    "GalleryHit",
    "Section",
    "curves_svg",
    "gallery_html",
    "intervals_svg",
    "metric_curves",
    "picture_html",
    "table_html",
    "table_text",
    "write_report",
]

Picture = NDArray[np.uint8] | Image.Image
Curve = Sequence[tuple[float, float]]
GalleryHit = tuple[Picture, str, bool | None]
"""Picture, caption, and whether it is right; None where that is not known."""

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1c1f23; --faint: #6a727c; --line: #d9dde2;
  --right: #1a8f3c; --wrong: #cf3030; --c0: #2563b8; --c1: #c2571a; --c2: #21865b; --c3: #8a3fb0;
  --c4: #a8861d; --c5: #b03060; --c6: #3a7d8c; --c7: #6b6b6b; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #15181c; --ink: #e6e8eb; --faint: #9aa3ad; --line: #343a41;
    --right: #4cc470; --wrong: #ff6b6b; --c0: #6fa8f5; --c1: #f09a63; --c2: #5fce9c; --c3: #c58ae6;
    --c4: #e0c15a; --c5: #ef7fa5; --c6: #7fc4d4; --c7: #b0b0b0; } }
* { box-sizing: border-box; }
body { background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  max-width: 72rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .5rem; }
p { max-width: 46rem; margin: .4rem 0; white-space: pre-line; } .faint, figcaption { color: var(--faint); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th.number, td.number { text-align: right; }
svg { max-width: 100%; height: auto; display: block; margin: .6rem 0; font: 12px system-ui, sans-serif; }
svg text { fill: var(--faint); } svg .heading, svg .name { fill: var(--ink); }
svg .grid { stroke: var(--line); }
svg polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.gallery { display: flex; gap: .5rem; overflow-x: auto; padding: .3rem 0 .6rem; align-items: flex-start; }
figure { margin: 0; flex: none; }
figure img { display: block; height: 8.5rem; border: 3px solid var(--line); border-radius: 4px; }
figcaption { font-size: .8rem; max-width: 9rem; overflow-wrap: anywhere; }
.right img { border-color: var(--right); } .wrong img { border-color: var(--wrong); }
.right .mark { color: var(--right); } .wrong .mark { color: var(--wrong); } .mark { font-weight: bold; }
.asked { display: flex; gap: .5rem; padding-right: .7rem; margin-right: .3rem;
  border-right: 2px solid var(--line); }
"""


@dataclass(frozen=True)
class Section:
    """A part of a report: a title, plain text below it, then HTML."""

    title: str
    text: str = ""
    body_html: str = ""


def write_report(
    path: str | os.PathLike[str], title: str, sections: Iterable[Section], subtitle: str = ""
) -> None:
    """Write a report to one HTML file, at once and whole."""
    parts = [f"<h1>{_text(title)}</h1>"]
    if subtitle:
        parts.append(f'<p class="faint">{_text(subtitle)}</p>')
    for section in sections:
        text = f"<p>{_text(section.text)}</p>" if section.text else ""
        parts.append(f"<section><h2>{_text(section.title)}</h2>{text}{section.body_html}</section>")
    body = "\n".join(parts)
    write_text(
        path,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n"
        f'<p class="faint">placket {_text(__version__)}</p></body></html>\n',
    )


def table_html(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] | Mapping[str, str] | None = None,
    digits: int = 2,
) -> str:
    """Return a table; arguments as for ``placket.tables.render``."""
    return render(rows, columns, digits, "html")


def table_text(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] | Mapping[str, str] | None = None,
    digits: int = 2,
) -> str:
    """Return the same table as aligned text."""
    return render(rows, columns, digits, "text")


def metric_curves(
    metrics: Iterable[Mapping[str, Any]], keys: Sequence[str], x: str = "step"
) -> dict[str, list[tuple[float, float]]]:
    """Return the curves of some keys of a run's ``metrics.jsonl`` (``RunFolder.read_metrics``).

    Lines without a key are left out of its curve.
    """
    curves: dict[str, list[tuple[float, float]]] = {key: [] for key in keys}
    for record in metrics:
        for key in keys:
            if record.get(key) is not None and record.get(x) is not None:
                curves[key].append((float(record[x]), float(record[key])))
    return curves


def curves_svg(
    series: Mapping[str, Curve], title: str, x_label: str = "step", width: int = 720, height: int = 300
) -> str:
    """Return line charts of several curves in one frame, as inline SVG.

    Args:
        series: name -> points (x, y) by rising x. A point that is not finite breaks its line. Of a curve with
            more than 800 points the mean of each stretch is drawn.
        title: above the chart.
        x_label: below it.
        width, height: in pixels; the chart shrinks on narrow screens.
    """
    lines = {name: [run for run in _runs(_thinned(points)) if run] for name, points in series.items()}
    every = [point for runs in lines.values() for run in runs for point in run]
    heading = f'<text class="heading" x="56" y="16">{_text(title)}</text>'
    if not every:
        empty = '<text x="56" y="38">no points</text>'
        return f'<svg viewBox="0 0 {width} 48" width="{width}">{heading}{empty}</svg>'
    left, right, top, bottom = 56, width - 12, 30, height - 56
    x_ticks, y_ticks = _ticks([x for x, _ in every]), _ticks([y for _, y in every])
    x_low, x_high = min(x for x, _ in every), max(x for x, _ in every)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        return left + across * (right - left), bottom - (y - y_low) / (y_high - y_low) * (bottom - top)

    parts = [heading]
    for y in y_ticks:
        level = at(x_low, y)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{level:.1f}" y2="{level:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{level + 4:.1f}" text-anchor="end">{_number(y)}</text>')
    for x in x_ticks:
        if x_low <= x <= x_high:
            place = at(x, y_low)[0]
            parts.append(f'<text x="{place:.1f}" y="{bottom + 18}" text-anchor="middle">{_number(x)}</text>')
    parts.append(f'<text x="{right}" y="{bottom + 34}" text-anchor="end">{_text(x_label)}</text>')
    legend = left
    for number, (name, runs) in enumerate(lines.items()):
        colour = f"var(--c{number % 8})"
        dash = ' stroke-dasharray="6 3"' if number >= 8 else ""
        for run in runs:
            # A run of one point is drawn as a short stroke.
            spots = [at(*point) for point in run]
            spots = (
                [(spots[0][0] - 2, spots[0][1]), (spots[0][0] + 2, spots[0][1])] if len(run) == 1 else spots
            )
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
            parts.append(f'<polyline style="stroke:{colour}"{dash} points="{path}"/>')
        parts.append(
            f'<line x1="{legend}" x2="{legend + 16}" y1="{height - 8}" y2="{height - 8}" '
            f'style="stroke:{colour};stroke-width:2.5"{dash}/>'
        )
        parts.append(f'<text class="name" x="{legend + 21}" y="{height - 4}">{_text(name)}</text>')
        legend += 40 + 7 * len(name)
    wide = max(width, legend)
    frame = f'viewBox="0 0 {wide} {height}" width="{wide}" role="img" aria-label="{_text(title)}"'
    return f"<svg {frame}>{''.join(parts)}</svg>"


def intervals_svg(
    rows: Sequence[tuple[str, Mapping[str, tuple[float, tuple[float, float]]]]],
    title: str,
    lines: Mapping[str, float],
    width: int = 720,
) -> str:
    """Return a chart of figures with their intervals, one line for each row, as a whole SVG file.

    Args:
        rows: name, and value and interval of each series by name.
        title: above the chart.
        lines: figures that are drawn across all rows, by name.
        width: in pixels.
    """
    names = list(dict.fromkeys(name for _, found in rows for name in found))
    every = [x for _, found in rows for value, pair in found.values() for x in (value, *pair)]
    ticks = _ticks([*every, *lines.values()])
    left, right, top, step = 16 + 7 * max(len(name) for name, _ in rows), width - 16, 54, 12
    height = 14 + step * len(names)
    bottom = top + height * len(rows)

    def at(x: float) -> float:
        return left + (x - ticks[0]) / (ticks[-1] - ticks[0]) * (right - left)

    parts = [f'<text class="heading" x="8" y="16">{_text(title)}</text>']
    legend = 8
    for number, name in enumerate(names):
        parts.append(f'<circle cx="{legend + 4}" cy="32" r="4" style="fill:var(--c{number % 8})"/>')
        parts.append(f'<text class="name" x="{legend + 13}" y="36">{_text(name)}</text>')
        legend += 36 + 7 * len(name)
    for x in ticks:
        parts.append(f'<line class="grid" x1="{at(x):.1f}" x2="{at(x):.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text x="{at(x):.1f}" y="{bottom + 18}" text-anchor="middle">{_number(x)}</text>')
    for name, x in lines.items():
        parts.append(
            f'<line class="grid" x1="{at(x):.1f}" x2="{at(x):.1f}" y1="{top}" y2="{bottom}" '
            f'stroke-dasharray="4 3" style="stroke:var(--ink)"/>'
        )
        parts.append(f'<text x="{at(x) + 4:.1f}" y="{top - 4}">{_text(name)}</text>')
    for row, (name, found) in enumerate(rows):
        first = top + height * row + 13
        parts.append(
            f'<text class="name" x="8" y="{first + step * (len(names) - 1) / 2 + 4:.1f}">{_text(name)}</text>'
        )
        for number, series in enumerate(names):
            if series not in found:
                continue
            value, (low, high) = found[series]
            y, colour = first + step * number, f"var(--c{number % 8})"
            parts.append(
                f'<line x1="{at(low):.1f}" x2="{at(high):.1f}" y1="{y}" y2="{y}" '
                f'style="stroke:{colour};stroke-width:2"/>'
            )
            parts.append(f'<circle cx="{at(value):.1f}" cy="{y}" r="3.5" style="fill:{colour}"/>')
    frame = f'viewBox="0 0 {width} {bottom + 28}" width="{width}" role="img" aria-label="{_text(title)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {frame}><style>{_STYLE}</style>{"".join(parts)}</svg>\n'


def picture_html(picture: Picture, caption: str = "", right: bool | None = None, height: int = 200) -> str:
    """Return a picture inside the page, marked right or wrong by frame and sign, or not at all where None.

    Args:
        picture: ``[h, w, 3]`` uint8 or a Pillow image.
        caption: below it.
        right: whether it is.
        height: in pixels that a taller picture is reduced to.
    """
    kind, mark = {None: ("", ""), True: ("right", "✓ "), False: ("wrong", "✗ ")}[right]
    sign = f'<span class="mark">{mark}</span>' if mark else ""
    return (
        f'<figure class="{kind}"><img src="{_data_url(picture, height)}" alt="{_text(caption)}">'
        f"<figcaption>{sign}{_text(caption)}</figcaption></figure>"
    )


def gallery_html(
    query: Picture,
    attention: Picture | None,
    crop: Picture | None,
    hits: Sequence[GalleryHit],
    caption: str = "query",
) -> str:
    """Return a row of pictures: the query, its attention and its crop where given, then the hits in order.

    Args:
        query, attention, crop: pictures of the query; ``placket.explain.attention_overlay`` makes the second.
        hits: picture, caption, and whether it is right (None: not known).
        caption: of the query.
    """
    asked = [(query, caption), (attention, "attention"), (crop, "crop")]
    first = "".join(picture_html(picture, text) for picture, text in asked if picture is not None)
    found = "".join(picture_html(picture, text, right) for picture, text, right in hits)
    return f'<div class="gallery"><div class="asked">{first}</div>{found}</div>'


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _data_url(picture: Picture, height: int) -> str:
    image = (picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))).convert(
        "RGB"
    )
    if image.height > height:
        image = image.resize(
            (max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS
        )
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _thinned(points: Curve, most: int = 800) -> list[tuple[float, float]]:
    """Return the means of equal stretches where there are more points than can be seen."""
    if len(points) <= most:
        return [(float(x), float(y)) for x, y in points]
    stretch = math.ceil(len(points) / most)
    parts = (np.asarray(points[i : i + stretch], dtype=np.float64) for i in range(0, len(points), stretch))
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in parts]


def _runs(points: list[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Split a curve at points that are not finite."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return runs


def _ticks(values: Sequence[float], most: int = 6) -> list[float]:
    """Return round numbers, evenly spaced, from below the smallest value to above the largest."""
    low, high = min(values), max(values)
    if high == low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [i * step for i in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:.6g}"
