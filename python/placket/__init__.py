"""Fine-grained fashion retrieval: attribute-specific embeddings, trained, evaluated, indexed and searched."""

from __future__ import annotations

from placket._load import load_extension

load_extension()

__version__ = "0.1.0"

from placket import data, ops, reference  # noqa: E402  (the operators must be registered first)

__all__ = ["__version__", "data", "ops", "reference"]
