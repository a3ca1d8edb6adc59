"""Tables, laid out once for every form they are shown in: aligned text, Markdown, LaTeX and HTML."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

__all__ = ["Format", "render"]

Format = Literal["text", "markdown", "latex", "html"]

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def render(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] | Mapping[str, str] | None = None,
    digits: int = 2,
    format: Format = "text",
    note: str = "",
) -> str:
    """Return a table.

    Args:
        rows: one mapping a row; a key that is absent leaves an empty cell. Floats get ``digits`` decimals,
            pairs of floats are written as intervals, None is empty. Columns with numbers are set right.
        columns: keys in order, or keys with their headings; the keys of the first row where None.
        digits: of floats.
        format: "text", "markdown", "latex" (a ``tabular`` with the rules of booktabs) or "html".
        note: a line below.

    Raises:
        ValueError: there is no such format.
    """
    if format not in get_args(Format):
        raise ValueError(f"render: format must be one of {', '.join(get_args(Format))}, got {format!r}")
    headings = _headings(rows, columns)
    lines = [list(headings.values())]
    lines += [[_shown(row.get(key), digits) for key in headings] for row in rows]
    return _WRITERS[format](lines, [_has_numbers(rows, key) for key in headings], note)


def _text(lines: list[list[str]], right: list[bool], note: str) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*aligned, note] if note else aligned)


def _markdown(lines: list[list[str]], right: list[bool], note: str) -> str:
    rows = ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines]
    rows.insert(1, "| " + " | ".join("---:" if number else "---" for number in right) + " |")
    return "\n".join([*rows, "", note] if note else rows)


def _latex(lines: list[list[str]], right: list[bool], note: str) -> str:
    def escaped(text: str) -> str:
        return "".join(_LATEX.get(character, character) for character in text)

    head, *body = [" & ".join(map(escaped, line)) + r" \\" for line in lines]
    begin = r"\begin{tabular}{" + "".join("r" if number else "l" for number in right) + "}"
    below = [rf"\par{{\footnotesize {escaped(note)}}}"] if note else []
    rows = [begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(rows + below)


def _html(lines: list[list[str]], right: list[bool], note: str) -> str:
    def row(tag: str, line: list[str]) -> str:
        kinds = (' class="number"' if number else "" for number in right)
        cells = (
            f"<{tag}{kind}>{html.escape(cell, quote=True)}</{tag}>"
            for cell, kind in zip(line, kinds, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    head, body = row("th", lines[0]), "".join(row("td", line) for line in lines[1:])
    below = f'<p class="faint">{html.escape(note, quote=True)}</p>' if note else ""
    table = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>{below}'


_WRITERS: Mapping[str, Callable[[list[list[str]], list[bool], str], str]] = {
    "text": _text,
    "markdown": _markdown,
    "latex": _latex,
    "html": _html,
}


def _headings(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | Mapping[str, str] | None
) -> dict[str, str]:
    """Headings by key."""
    if columns is None:
        columns = list(rows[0]) if rows else []
    return dict(columns) if isinstance(columns, Mapping) else {key: key for key in columns}


def _has_numbers(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    kinds = (int, float, np.number, tuple, list)
    return any(isinstance(row.get(key), kinds) and not isinstance(row[key], bool) for row in rows)


def _shown(value: Any, digits: int) -> str:
    if value is None:
        return ""
    if isinstance(value, (tuple, list)):
        return " – ".join(_shown(item, digits) for item in value)
    if not isinstance(value, (float, np.floating)):
        return str(value)
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text
