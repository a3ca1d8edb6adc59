"""Fine-grained fashion retrieval: attribute-specific embeddings, trained, evaluated, indexed and searched."""

from __future__ import annotations

from placket._load import load_extension

load_extension()

__version__ = "0.1.0"

from placket import data, index, losses, nn, ops, reference, text, weights  # noqa: E402  (the operators must be registered first)
from placket.config import TrainConfig, load_config  # noqa: E402
from placket.evaluate import embed_image, embed_split, evaluate  # noqa: E402
from placket.extension import extend  # noqa: E402
from placket.index import AttributeIndex  # noqa: E402
from placket.models import create_model, load  # noqa: E402
from placket.schema import Attribute, AttributeSchema  # noqa: E402
from placket.train import Trainer, TrainResult, train  # noqa: E402

__all__ = [
    "Attribute",
    "AttributeIndex",
    "AttributeSchema",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "__version__",
    "create_model",
    "data",
    "embed_image",
    "embed_split",
    "evaluate",
    "extend",
    "index",
    "load",
    "load_config",
    "losses",
    "nn",
    "ops",
    "reference",
    "text",
    "train",
    "weights",
]
