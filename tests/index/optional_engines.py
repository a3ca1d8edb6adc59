"""The engines that need packages: FAISS, the Milvus server of the package ``milvus==2.3.5``, and Milvus Lite.

A test is skipped where its package is absent; with PLACKET_REQUIRE_ENGINES=1 it fails. The server listens on
free ports of this machine, keeps its data in a temporary folder, and ends with the tests.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

# The server looks at its collections at these intervals; with its defaults, creating one takes four seconds.
FASTER = {
    "proxy.timeTickInterval": 20,
    "queryCoord.checkInterval": 50,
    "queryCoord.distPullInterval": 50,
    "rootCoord.dmlChannelNum": 4,
    "log.level": "warn",
}


@pytest.fixture(scope="session")
def faiss_engine() -> str:
    """Name of the engine."""
    _need("faiss", 'pip install "placket[faiss]"')
    return "faiss"


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Milvus 2.3.5 server that is empty."""
    _need("pymilvus", 'pip install "placket[milvus]"')
    _need("milvus", "pip install milvus==2.3.5")
    from milvus import MilvusServer, MilvusServerConfig

    folder, ports = tmp_path_factory.mktemp("milvus"), _free_ports()
    config = MilvusServerConfig(data_dir=str(folder))
    config.update(**{key: next(ports) for key in config.configurable_items if key.endswith("_port")})
    for key, value in FASTER.items():
        config.set(key, value)
    server = MilvusServer(config)
    server.webservice_port = next(ports)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ETCD_CONFIG_PATH", str(_etcd_config(folder, next(ports), next(ports))))
        patch.setattr(subprocess, "Popen", partial(subprocess.Popen, preexec_fn=_end_with_parent))
        try:
            server.start()
            yield f"http://127.0.0.1:{server.listen_port}"
        finally:
            server.stop()
            server.cleanup()


@pytest.fixture
def milvus_lite(tmp_path: Path) -> str:
    """File of a Milvus Lite that is empty; pymilvus starts it."""
    _need("pymilvus", 'pip install "placket[milvus]"')
    _need("milvus_lite", "pip install milvus-lite")
    return str(tmp_path / "milvus.db")


def _need(package: str, mend: str) -> None:
    if importlib.util.find_spec(package) is None:
        message = f"package '{package}' is not installed ({mend})"
        assert os.environ.get("PLACKET_REQUIRE_ENGINES") != "1", message
        pytest.skip(message)


def _end_with_parent() -> None:
    """Ask Linux to kill this process when the one that started it is no more, for whatever reason."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _etcd_config(folder: Path, client: int, peer: int) -> Path:
    """Write what the etcd inside the server reads; without it, it takes the ports 2379 and 2380."""
    own, others = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    urls = {
        "listen-client-urls": own,
        "advertise-client-urls": own,
        "listen-peer-urls": others,
        "initial-advertise-peer-urls": others,
        "initial-cluster": f"default={others}",
    }
    path = folder / "etcd.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in urls.items()))
    return path


def _free_ports() -> Iterator[int]:
    """Below the range that outgoing connections get theirs from, so that none is taken in between."""
    for port in range(20_000, 32_000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port
