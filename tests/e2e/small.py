"""The pools of jobs in these tests: the session's Ray counts more CPUs than the machine has cores."""

POOLS = {"decode_workers": 1, "extract_workers": 1, "extract_threads": 1, "flow_workers": 1}
