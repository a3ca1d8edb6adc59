"""The native tests of tests/cpp as pytest items: listed and run once, each case replayed."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SKIPPED = "skipped: "
PROGRAMS = [
    p for p in (ROOT / "build" / "core_tests", ROOT / "build" / "existing" / "core_tests") if p.exists()
]


def cases() -> list[str]:
    if not PROGRAMS:
        return []
    listing = subprocess.run(
        [PROGRAMS[0], "--gtest_list_tests"], capture_output=True, text=True, check=True
    ).stdout
    names, suite = [], ""
    for line in listing.splitlines():
        if line.startswith(" "):
            names.append(suite + line.split("#")[0].strip())
        elif line.endswith("."):
            suite = line
    return names


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """Each case's failure text, None where it passed; a skipped one's is SKIPPED and its reason."""
    report = tmp_path_factory.mktemp("native") / "report.xml"
    subprocess.run([PROGRAMS[0], f"--gtest_output=xml:{report}"], capture_output=True, check=False)
    found: dict[str, str | None] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        failure = case.find("failure")
        skipped = case.find("skipped")
        text = None if failure is None else failure.text
        if skipped is not None:
            text = SKIPPED + (skipped.get("message") or "").strip()
        found[f"{case.get('classname')}.{case.get('name')}"] = text
    return found


@pytest.mark.skipif(
    not PROGRAMS, reason="no native test program (built with PLACKET_TESTS=ON where GoogleTest is found)"
)
@pytest.mark.parametrize("case", cases() or ["none"])
def test_native(case: str, outcomes: dict[str, str | None]):
    outcome = outcomes[case]
    if outcome is not None and outcome.startswith(SKIPPED):
        pytest.skip(outcome.removeprefix(SKIPPED))
    assert outcome is None, outcome
