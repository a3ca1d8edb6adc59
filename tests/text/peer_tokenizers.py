"""The tokenizers of open_clip and transformers, with CLIP's vocabulary."""

from __future__ import annotations

import gzip
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def open_clip_tokenizer() -> ModuleType:
    """Load open_clip's tokenizer module alone: the package itself needs torchvision and timm."""
    pytest.importorskip("ftfy")
    pytest.importorskip("regex")
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        pytest.skip("no open_clip (pip install --no-deps open_clip_torch)")
    path = Path(package.origin).with_name("tokenizer.py")
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def transformers_tokenizer(vocabulary: Path, simple: Any) -> Any:
    """Make transformers' tokenizer of CLIP's vocabulary file, with open_clip's ids of its tokens."""
    transformers = pytest.importorskip("transformers")
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {names.get(token, token): i for token, i in simple.encoder.items()}
    lines = gzip.decompress(vocabulary.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    return transformers.CLIPTokenizer(vocab=vocab, merges=[tuple(line.split()) for line in lines])
