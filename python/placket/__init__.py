"""Fine-grained fashion retrieval: attribute-specific embeddings, trained, evaluated, indexed and searched."""

from __future__ import annotations

from placket._load import load_extension

load_extension()

__version__ = "0.1.0"

from placket import nn, ops, reference, weights  # noqa: E402  (the operators must be registered first)
from placket.models import create_model, load  # noqa: E402
from placket.schema import Attribute, AttributeSchema  # noqa: E402

__all__ = [
    "Attribute",
    "AttributeSchema",
    "__version__",
    "create_model",
    "load",
    "nn",
    "ops",
    "reference",
    "weights",
]
