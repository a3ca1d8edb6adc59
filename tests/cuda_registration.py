"""Check that a CUDA build imports and that every operator has a kernel for both kinds of device.

An operator that is composed of others (CompositeImplicitAutograd) has none of its own. Run by .ci/run against
the CUDA build, on a machine that needs no GPU.
"""

from __future__ import annotations

import sys

import torch

from placket import _build, ops


def main() -> int:
    if not _build.CUDA:
        print("this is not a CUDA build", file=sys.stderr)
        return 1
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("placket::")}
    problems = [f"{name} is not registered" for name in ops.__all__ if f"placket::{name}" not in names]
    own = sorted(name for name in names if not has_kernel(name, "CompositeImplicitAutograd"))
    problems += [
        f"{name} has no {key} kernel" for name in own for key in ("CPU", "CUDA") if not has_kernel(name, key)
    ]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(own)} operators with kernels of their own: {', '.join(own)}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
