"""What ``featlib models`` prints, beyond the table of describing each network."""

import json

from featlib.extractors import listing, registry
from featlib.extractors.conformance import Finding


def test_the_table_says_that_timm_has_more_and_json_does_not() -> None:
    described = [registry.describe("alexnet"), registry.describe("squeezenet1_1")]
    lines = listing.as_text(described).splitlines()
    assert [line.split()[0] for line in lines] == ["network", "alexnet", "squeezenet1_1", "and"]
    assert "timm:NAME" in lines[-1]
    assert [d["name"] for d in json.loads(listing.as_json(described))] == ["alexnet", "squeezenet1_1"]


def test_one_network_is_a_card_and_an_object() -> None:
    described = registry.describe("tests.extractors.tiny_networks:tiny_clips")
    card = listing.as_text(described)
    assert "tests.extractors.tiny_networks:tiny_clips (tiny_clips, from user)" in card
    assert "frames=4,stride=1,hop=2,tail=drop" in card
    assert json.loads(listing.as_json(described))["feature_shape"] == [8]


def test_findings_are_a_table_and_a_list() -> None:
    findings = (
        Finding("shape", True, None, "(16,)"),
        Finding("agreement", False, 0.25, "not what a plain forward gives"),
        Finding("precision fp16", None, None, "left out: takes minutes"),
    )
    lines = [line.split(maxsplit=2) for line in listing.findings_as_text(findings).splitlines()]
    assert lines[1] == ["shape", "ok", "(16,)"]
    assert lines[2] == ["agreement", "FAILED", "0.25         not what a plain forward gives"]
    assert lines[3][2].startswith("- ")
    assert [f["passed"] for f in json.loads(listing.findings_as_json(findings))] == [True, False, None]
