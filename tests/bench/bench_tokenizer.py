"""CLIP's tokenizer: sentences to rows of 77 ids, against open_clip's and transformers'.

10,000 different sentences of H&M's catalogue in one call, a few of them one by one, and long words, another
each time. Beside open_clip ours mends by ftfy as it does; beside transformers neither mends, and the
sentences need none. Both peers keep the words that they have met, and warming up has them meet those of the
sentences.
"""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from string import ascii_lowercase
from typing import Any

import torch
from paired import Record, compare
from photographs import folder
from torch import Tensor

from placket.text import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "text"))
from peer_tokenizers import open_clip_tokenizer, transformers_tokenizer

SENTENCES = 10_000
LETTERS = 2_000


def sentences() -> list[str]:
    """Return descriptions, then names, of articles: different, and changed by neither ftfy nor entities."""
    from ftfy import fix_text

    found: dict[str, None] = {}
    for column in ("detail_desc", "prod_name"):
        with (folder("hm") / "articles.csv").open(encoding="utf-8", newline="") as file:
            found |= dict.fromkeys(row[column] for row in csv.DictReader(file))
    return [text for text in found if fix_text(text) == text and "&" not in text][:SENTENCES]


def one_by_one(tokenizer: Callable[[str], Tensor], texts: list[str]) -> Callable[[], Tensor]:
    return lambda: torch.cat([tokenizer(text) for text in texts])


def word_by_word(tokenizer: Callable[[str], Tensor]) -> Callable[[], Tensor]:
    """Take the next long word each time; each arm meets the same words."""
    random = Random(0)
    words = itertools.cycle(["".join(random.choices(ascii_lowercase, k=LETTERS)) for _ in range(64)])
    return lambda: tokenizer(next(words))


def same(ours: Tensor, theirs: Tensor) -> None:
    assert torch.equal(ours, theirs)


def run() -> list[Record]:
    vocabulary = folder("clip") / "bpe_simple_vocab_16e6.txt.gz"
    texts = sentences()
    ours, basic = Tokenizer.load(vocabulary), Tokenizer.load(vocabulary, clean="basic")
    open_clip = open_clip_tokenizer().SimpleTokenizer(str(vocabulary))
    backend = transformers_tokenizer(vocabulary, open_clip)

    def transformers(given: str | list[str]) -> Tensor:
        several = [given] if isinstance(given, str) else given
        options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": 77}
        found = backend(several, return_tensors="pt", **options)
        return found.input_ids.where(found.attention_mask == 1, 0)

    few = texts[:200]
    records = []
    for clean, tokenizer, name, peer in (
        ("ftfy", ours, "open_clip", open_clip),
        ("basic", basic, "transformers", transformers),
    ):
        arms: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
            f"{len(texts)} sentences": (lambda t=tokenizer: t(texts), lambda p=peer: p(texts)),
            "a sentence at a time": (one_by_one(tokenizer, few), one_by_one(peer, few)),
            f"a word of {LETTERS} letters": (word_by_word(tokenizer), word_by_word(peer)),
        }
        for title, (own, theirs) in arms.items():
            pairs = 3 if "word" in title and name == "open_clip" else 11
            records.append(
                compare(f"tokenizer, {clean}, {title}", own, {name: theirs}, pairs=pairs, check=same)
            )
    return records


if __name__ == "__main__":
    run()
