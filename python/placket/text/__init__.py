"""Words for garments: the tokenizer of CLIP, and the sentences that name categories and attributes.

tokenizer = placket.text.Tokenizer.load("bpe_simple_vocab_16e6.txt.gz")
prompts = placket.text.Prompts.load("en")
tokenizer(prompts.category("dress"))  # [N, 77]
"""

from __future__ import annotations

from placket.text.prompts import Prompts
from placket.text.tokenizer import Tokenizer

__all__ = ["Prompts", "Tokenizer"]
