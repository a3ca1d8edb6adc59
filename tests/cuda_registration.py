"""Check that a CUDA build imports and that every operator with a CPU kernel has a CUDA kernel too.

Run by .ci/run against the CUDA build, on a machine that needs no GPU.
"""

from __future__ import annotations

import sys

import torch

import placket  # noqa: F401  (loads the extension)
from placket import _build


def main() -> int:
    if not _build.CUDA:
        print("this is not a CUDA build", file=sys.stderr)
        return 1
    names = sorted(n for n in torch._C._dispatch_get_all_op_names() if n.startswith("placket::"))
    kernels = [n for n in names if torch._C._dispatch_has_kernel_for_dispatch_key(n, "CPU")]
    missing = [n for n in kernels if not torch._C._dispatch_has_kernel_for_dispatch_key(n, "CUDA")]
    if not kernels or missing:
        print(f"{len(kernels)} operators; without a CUDA kernel: {missing}", file=sys.stderr)
        return 1
    print(f"{len(kernels)} operators, each with a CUDA kernel")
    return 0


if __name__ == "__main__":
    sys.exit(main())
