"""``python -m tests.torture``: kills and faults by the thousand, against the promise that no row is lost or doubled."""
