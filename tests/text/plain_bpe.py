"""CLIP's tokenizer in plain Python, slow and obvious: the definition that tests compare with."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise

_FIXED = re.compile(r"<(s|ſ)tart_of_text>|<end_of_text>|'(s|ſ|t|re|ve|m|ll|d)")
_WHITE_SPACE = (
    frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000")
    | {"\u0345"}
    | {chr(point) for point in range(0x2000, 0x200B)}
)


@cache
def alphabet() -> dict[int, str]:
    """Return the character that stands for each byte, in the order of the ids."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


def char_class(character: str) -> str:
    """Return "space", "L" (a letter), "N" (a number), or "" for the rest."""
    if character in _WHITE_SPACE:
        return "space"
    category = unicodedata.category(character)[0]
    return category if category in "LN" else ""


def words_of(text: str) -> list[str]:
    words, at = [], 0
    while at < len(text):
        fixed, kind = _FIXED.match(text, at), char_class(text[at])
        end = at + 1
        if fixed:
            end = fixed.end()
        elif kind != "N":
            while end < len(text) and char_class(text[end]) == kind:
                end += 1
        if kind != "space":
            words.append(text[at:end])
        at = end
    return words


def merge(symbols: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """Merge a pair wherever it is, from left to right."""
    merged: list[str] = []
    i = 0
    while i < len(symbols):
        if tuple(symbols[i : i + 2]) == pair:
            merged.append("".join(pair))
            i += 2
        else:
            merged.append(symbols[i])
            i += 1
    return merged


def symbols_of(word: str) -> list[str]:
    characters = [alphabet()[byte] for byte in word.encode()]
    return [*characters[:-1], f"{characters[-1]}</w>"]


class PlainTokenizer:
    """Takes clean text in lower case."""

    def __init__(self, merges: str) -> None:
        pairs = [(left, right) for left, right in (line.split(" ") for line in merges.splitlines())]
        self.ranks = {pair: rank for rank, pair in enumerate(pairs)}
        tokens = [*alphabet().values(), *(f"{c}</w>" for c in alphabet().values()), *map("".join, pairs)]
        tokens += ["<start_of_text>", "<end_of_text>"]
        self.ids = {token: i for i, token in enumerate(tokens)}

    def encode(self, text: str) -> list[int]:
        return [self.ids[token] for word in words_of(text) for token in self._tokens(word)]

    def rows(self, texts: Iterable[str], length: int) -> list[list[int]]:
        start, end = len(self.ids) - 2, len(self.ids) - 1
        rows = []
        for text in texts:
            row = [start, *self.encode(text), end]
            if len(row) > length:
                row = [*row[: length - 1], end]
            rows.append(row + [0] * (length - len(row)))
        return rows

    def _tokens(self, word: str) -> list[str]:
        if word in ("<start_of_text>", "<end_of_text>"):
            return [word]
        symbols = symbols_of(word)
        while True:
            known = [pair for pair in pairwise(symbols) if pair in self.ranks]
            if not known:
                return symbols
            symbols = merge(symbols, min(known, key=self.ranks.__getitem__))


def learn_merges(texts: Iterable[str], count: int) -> str:
    """Learn a vocabulary of so many merges, the most frequent pair first (Sennrich et al., ACL 2016)."""
    words = Counter(word for text in texts for word in words_of(text.lower()))
    split = {word: symbols_of(word) for word in words}
    merges: list[tuple[str, str]] = []
    made: set[str] = set()
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in split.items():
            for pair in pairwise(symbols):
                pairs[pair] += words[word]
        best = max((pair for pair in pairs if "".join(pair) not in made), key=lambda p: (pairs[p], p))
        made.add("".join(best))
        merges.append(best)
        split = {word: merge(symbols, best) for word, symbols in split.items()}
    return "\n".join(" ".join(pair) for pair in merges)
