"""Write ``unicode_table.h``, the letters, numbers and spaces of Unicode, from Python's tables.

pip install unicodedata2 && python csrc/data/unicode_table.py > csrc/data/unicode_table.h

``unicodedata2`` is ``unicodedata`` of the newest Unicode; Python's own is that of its release.
"""

from __future__ import annotations

import sys

import unicodedata2 as unicodedata

_ENTRIES = 2  # in a line of the table
# The property White_Space (PropList.txt), which general categories do not tell.
_SPACES = {*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F}
_SPACES |= {0x205F, 0x3000}


def class_of(point: int) -> str | None:
    """Return the name of a character's class, None for the rest."""
    if point in _SPACES:
        return "kSpace"
    return {"L": "kLetter", "N": "kNumber"}.get(unicodedata.category(chr(point))[0])


def ranges() -> list[tuple[int, int, str]]:
    """Return the first and last character of each run of a class, in order."""
    found: list[tuple[int, int, str]] = []
    for point in range(sys.maxunicode + 1):
        name = class_of(point)
        if name is None:
            continue
        if found and found[-1][1:] == (point - 1, name):
            found[-1] = (found[-1][0], point, name)
        else:
            found.append((point, point, name))
    return found


def main() -> None:
    entries = [f"{{0x{first:X}, 0x{last:X}, CharClass::{name}}}," for first, last, name in ranges()]
    print('#pragma once\n\n#include "data/unicode_classes.h"\n\nnamespace placket {\n')
    print("struct CharRange {\n  char32_t first, last;\n  CharClass char_class;\n};\n")
    print(f"// Unicode {unicodedata.unidata_version}, in order; written by unicode_table.py.")
    print("inline constexpr CharRange kCharRanges[] = {")
    print("    // clang-format off")
    for i in range(0, len(entries), _ENTRIES):
        print("    " + " ".join(entries[i : i + _ENTRIES]))
    print("    // clang-format on")
    print("};\n\n}  // namespace placket")


if __name__ == "__main__":
    main()
