from __future__ import annotations

from milvus_server import milvus_lite, milvus_server

__all__ = ["milvus_lite", "milvus_server"]
