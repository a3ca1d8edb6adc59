from __future__ import annotations

from optional_engines import faiss_engine, milvus_lite, milvus_server

__all__ = ["faiss_engine", "milvus_lite", "milvus_server"]
