"""Make C++ of a CUDA source: launches become calls of emulated_cuda::launch.

python launches.py KERNEL.cu OUT.cpp
"""

import re
import sys
from pathlib import Path

LAUNCH = re.compile(r"(\w+(?:<[^;<>]*>)?)\s*<<<(.*?)>>>\s*\((.*?)\);", re.DOTALL)
SHARED = re.compile(r"extern __shared__ (\w+) (\w+)\[\];")


def main() -> None:
    source, out = map(Path, sys.argv[1:])
    text = source.read_text(encoding="utf-8")
    text = LAUNCH.sub(r"emulated_cuda::launch(\2, [&] { \1(\3); });", text)
    text = SHARED.sub(r"auto* \2 = static_cast<\1*>(emulated_cuda::dynamic_shared());", text)
    if "<<<" in text or "extern __shared__" in text:
        sys.exit(f"{source}: launches and extern __shared__ arrays must be as launches.py knows them")
    out.write_text(f'#line 1 "{source}"\n{text}', encoding="utf-8")


if __name__ == "__main__":
    main()
