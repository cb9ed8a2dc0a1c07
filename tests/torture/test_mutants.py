"""A part of the mutants of ``make torture``."""

from pathlib import Path

from tests.torture import mutants


def test_every_mutant_has_an_outcome_within_its_limits(tmp_path: Path) -> None:
    tally = mutants.torture(tmp_path, 360, first_seed=0)
    assert tally.count == 360
    assert not tally.failures, tally.text()
