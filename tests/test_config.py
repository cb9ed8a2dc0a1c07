"""The job's configuration: what is refused and how, and what the fingerprint depends on."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featlib.config import ExtractConfig, check_name, extract_config, fingerprint, read_job_file
from featlib.errors import ConfigError
from featlib.extractors.resolve import ResolvedModel
from featlib.sampling import ClipSampling, FrameSampling
from featlib.spec import InputSpec, PixelSpec

JOB: dict[str, Any] = {"manifest": "clips/", "output": "out", "dataset": "mine", "models": [{"network": "resnet18"}]}


def test_defaults() -> None:
    config = extract_config(JOB)
    assert config.manifest == ("clips/",)
    assert config.labels == ("resnet18",)
    assert (config.max_failed, config.device, config.shard_items) == (0.05, "auto", 256)
    assert config.models[0].weights == "default"


def test_it_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        extract_config(JOB).dataset = "other"  # type: ignore[misc]


@pytest.mark.parametrize("name", ["a", "Kinetics-400", "r3d_18.v2", "x" * 128, "part.1"])
def test_names_that_hold(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "001", "2024-01-01", "1e5", "a/b", "a b", "a=b", "x" * 200, "é", "-a", ".a", "a\n", "../x"]
)
def test_names_that_break_the_rule(name: str) -> None:
    with pytest.raises(ConfigError, match=r"dataset: .* must be a letter followed by"):
        extract_config({**JOB, "dataset": name})


@pytest.mark.parametrize("name", ["true", "False", "null", "nan", "NaN", "inf", "Infinity"])
def test_names_that_hive_reads_as_values(name: str) -> None:
    with pytest.raises(ConfigError, match="read by Hive readers as a value"):
        extract_config({**JOB, "models": [{"network": "resnet18", "label": name}]})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dataset": None}, "dataset: "),
        ({"manifest": []}, "manifest: "),
        ({"models": []}, "models: "),
        ({"models": [{"label": "x"}]}, "models.0.network: is required"),
        ({"colour": 1}, "colour: unknown setting"),
        ({"models": [{"network": "a", "colour": 1}]}, "models.0.colour: unknown setting"),
        ({"max_failed": 1.5}, "max_failed: Input should be less than or equal to 1 (got 1.5)"),
        ({"max_failed": float("nan")}, "max_failed: "),
        ({"limit": 0}, "limit: Input should be greater than or equal to 1 (got 0)"),
        ({"device": "tpu"}, "device: Input should be 'auto', 'cpu' or 'cuda' (got 'tpu')"),
        ({"models": [{"network": "a", "precision": "fp8"}]}, "models.0.precision: "),
        ({"models": [{"network": "a", "frame_sampling": "fps"}]}, "models.0.frame_sampling: "),
        ({"models": [{"network": "a", "clip_sampling": "frame=3"}]}, "'frame=3' is not one of frames="),
        ({"models": [{"network": "a", "batch_size": 0}]}, "models.0.batch_size: "),
        ({"models": [{"network": "a"}, {"network": "a"}]}, "label 'a' is used twice"),
        ({"shard_items": 100_001}, "shard_items: "),
        ({"decode_stall_s": 0}, "decode_stall_s: "),
    ],
)
def test_wrong_values_are_named_in_one_line(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        extract_config({**JOB, **change})
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_all_faults_are_named_together() -> None:
    with pytest.raises(ConfigError, match=r"dataset: is required; limit: .*"):
        extract_config({"manifest": "m", "output": "o", "models": [{"network": "a"}], "limit": -1})


def test_one_network_under_two_labels() -> None:
    models = [{"network": "resnet18"}, {"network": "resnet18", "label": "dense", "frame_sampling": "all"}]
    assert extract_config({**JOB, "models": models}).labels == ("resnet18", "dense")


def _job_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return str(path)


def test_a_job_file(tmp_path: Path) -> None:
    path = _job_file(
        tmp_path,
        "manifest: [a.csv, b/]\noutput: s3://b/out\ndataset: mine\nmodels:\n- network: r3d_18\n  label: c\n"
        "  clip_sampling: frames=8,stride=2\nmax_failed: 0.5\n",
    )
    config = extract_config(read_job_file(path))
    assert config == ExtractConfig.model_validate(
        {
            "manifest": ("a.csv", "b/"),
            "output": "s3://b/out",
            "dataset": "mine",
            "models": ({"network": "r3d_18", "label": "c", "clip_sampling": "frames=8,stride=2"},),
            "max_failed": 0.5,
        }
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("a: [", "not YAML"),
        ("datset: x\n", "unknown key datset; known are manifest, output, dataset"),
        ("1: x\n", "unknown key 1"),
    ],
)
def test_wrong_job_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_job_file(_job_file(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("manifest: a\noutput: o\n  aws_secret: 'SECRET'\n", "line 3, column 13: mapping values are not allowed"),
        ("a: 'SECRET", "line 1, column 11: found unexpected end of stream"),
        ("a: *SECRET", "line 1, column 4: found undefined alias"),
        ("a: !SECRET x", "line 1, column 4: could not determine a constructor"),
        ("a: !it'sSECRET x", "line 1, column 4: could not determine a constructor"),
        ("a: !!bool SECRET", "is none"),
        ("a: !!timestamp SECRET", "is none"),
        ("a: SECRET\x01", "special characters are not allowed, at character 10"),
        ("a: !!int SECRET", "is none"),
        ("a: 2026-13-01", "looks like a date or a number"),
    ],
)
def test_a_job_file_that_is_no_yaml_is_told_by_the_place_alone(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(ConfigError, match="not YAML") as caught:
        read_job_file(_job_file(tmp_path, text))
    assert place in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_job_file_that_is_nested_without_end_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is nested too deep[^\n]*$"):
        read_job_file(_job_file(tmp_path, "a: " + "[" * 3000))


def test_a_job_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_job_file(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("name", ["001", "2024-01-01", "true", "1.5"])
def test_yaml_values_that_are_no_strings_are_refused_as_names(tmp_path: Path, name: str) -> None:
    values = read_job_file(_job_file(tmp_path, f"manifest: m\noutput: o\ndataset: {name}\nmodels: [{{network: a}}]\n"))
    with pytest.raises(ConfigError, match="dataset: "):
        extract_config(values)


def _resolved(**changes: Any) -> ResolvedModel:
    values: dict[str, Any] = {
        "label": "m",
        "network": "resnet18",
        "layer": "penultimate",
        "precision": "fp32",
        "batch_size": None,
        "input": InputSpec("frame", PixelSpec((256,), (224, 224)), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
        "sampling": FrameSampling.parse("fps:1"),
        "weights_source": "here",
        "weights_sha256": "0" * 64,
        "num_classes": 1000,
        "settings": {},
        "last_layer": "fc",
        "feature_shape": (512,),
        "extractor_version": "1",
    }
    return ResolvedModel(**{**values, **changes})


BASE = fingerprint(_resolved().semantics())


@given(label=st.text(min_size=1), batch_size=st.none() | st.integers(1, 4096), source=st.text())
def test_what_does_not_change_a_feature_does_not_change_the_fingerprint(
    label: str, batch_size: int | None, source: str
) -> None:
    same = _resolved(label=label, batch_size=batch_size, weights_source=source)
    assert fingerprint(same.semantics()) == BASE


@pytest.mark.parametrize(
    "change",
    [
        {"network": "resnet34"},
        {"layer": "logits"},
        {"precision": "bf16"},
        {"sampling": FrameSampling.parse("fps:2")},
        {"sampling": ClipSampling(16)},
        {"sampling": ClipSampling(16, tail="pad")},
        {"weights_sha256": "1" * 64},
        {"extractor_version": "2"},
        {"input": InputSpec("frame", PixelSpec((232,), (224, 224)), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))},
        {"input": InputSpec("frame", PixelSpec((256,), (224, 224), antialias=False), (0.5,) * 3, (0.2,) * 3)},
        {"input": InputSpec("frame", PixelSpec((256,), (224, 224)), (0.4, 0.5, 0.5), (0.2, 0.2, 0.2))},
        {"input": InputSpec("frame", PixelSpec((256,), (224, 224)), (0.5, 0.5, 0.5), (0.3, 0.2, 0.2))},
    ],
)
def test_what_changes_a_feature_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert fingerprint(_resolved(**change).semantics()) != BASE


@given(st.dictionaries(st.text(), st.text(), max_size=6), st.randoms())
def test_fingerprints_do_not_depend_on_order(semantics: dict[str, str], random: Any) -> None:
    shuffled = list(semantics.items())
    random.shuffle(shuffled)
    assert fingerprint(dict(shuffled)) == fingerprint(semantics)
    assert re.fullmatch(r"[0-9a-f]{64}", fingerprint(semantics))


def test_fingerprints_of_different_settings_differ() -> None:
    assert fingerprint({"a": "b", "c": "d"}) != fingerprint({"a": "b,c:d"})


@pytest.mark.parametrize(
    "url",
    [
        *("http://me:HID/DEN@h:9000", "https://HIDDEN@h", "ftp://me:HIDDEN@h", "me:HIDDEN@h:9000", "http://h/?HIDDEN"),
        *("http://AKIAKEY:HIDDEN", "AKIAKEY:HIDDEN", "h:9000/ HIDDEN"),
    ],
)
def test_an_endpoint_with_a_key_is_refused_without_a_word_of_it(url: str) -> None:
    values = {"manifest": ["m"], "output": "o", "dataset": "d", "models": [{"network": "alexnet"}], "endpoint_url": url}
    with pytest.raises(ConfigError, match="endpoint_url") as caught:
        extract_config(values)
    assert "DEN" not in str(caught.value)
