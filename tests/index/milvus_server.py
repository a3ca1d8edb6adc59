"""A real Milvus server for tests: the one that the package ``milvus==2.3.5`` carries.

It listens on free ports of this machine, keeps its data in a temporary folder, and ends with the tests.
"""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator

import pytest

# The server looks at its collections at these intervals; with its defaults, creating one takes four seconds.
FASTER = {
    "proxy.timeTickInterval": 20,
    "queryCoord.checkInterval": 50,
    "queryCoord.distPullInterval": 50,
    "log.level": "warn",
}


def _free_ports() -> Iterator[int]:
    """Below the range that outgoing connections get theirs from, so that none is taken in between."""
    for port in range(20_000, 32_000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Milvus 2.3.5 server."""
    for package in ("milvus", "pymilvus"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"package '{package}' is not installed (pip install milvus==2.3.5 pymilvus)")
    from milvus import MilvusServer, MilvusServerConfig

    config = MilvusServerConfig(data_dir=str(tmp_path_factory.mktemp("milvus")))
    ports = _free_ports()
    config.update(**{key: next(ports) for key in config.configurable_items if key.endswith("_port")})
    for key, value in FASTER.items():
        config.set(key, value)
    server = MilvusServer(config)
    server.webservice_port = next(ports)
    try:
        server.start()
        yield f"http://127.0.0.1:{server.listen_port}"
    finally:
        server.stop()
        server.cleanup()
