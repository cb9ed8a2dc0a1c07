"""The table of methods names code and tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [line for line in (ROOT / "METHODS.md").read_text().splitlines() if line.startswith("| ")][1:]
NAMED = {
    "pooled CNN", "LSTM gates", "TCN", "soft attention", "two-stream fusion", "C3D", "I3D", "factorised 3D", "R-CNN",
    "Siamese", "triplet", "Euclidean and cosine",
}  # fmt: skip


def test_every_method_has_a_row() -> None:
    methods = {re.split(r"[:]", row.strip("| "))[0].split(" | ")[0] for row in ROWS}
    assert methods >= NAMED


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.strip("| ")[:30])
def test_code_and_tests_of_a_row_are_there(row: str) -> None:
    _, formula, code, proofs = (cell.strip() for cell in row.strip("| ").split(" | "))
    assert formula
    files = re.findall(r"`(featlib/[^`]+)`", code)
    assert files
    assert all((ROOT / name).is_file() for name in files)
    tests = re.findall(r"`(tests/[^`]+)::(\w+)`", proofs)
    assert tests
    for name, function in tests:
        assert f"\ndef {function}(" in (ROOT / name).read_text(), f"{name} has no {function}"
