"""The command line: flags and job files become one configuration; mistakes are one line and exit 2."""

import errno
import tempfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from featlib import partition
from featlib.cli import cli, main
from featlib.errors import ConfigError, StoppedError
from featlib.extract_options import job_values
from featlib.storage import Store
from featlib.summary import Summary
from tests.shards.make import KEYS, Item, planned, provenance, publish, staged

JOB = """
manifest: a.csv
output: out
dataset: mine
max_failed: 0.5
models:
- network: resnet18
- network: r3d_18
  label: c3d
  precision: bf16
"""


@pytest.fixture
def job(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return str(path)


def _models(**given: Any) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = job_values(given)["models"]
    return models


@pytest.mark.parametrize(
    "command",
    [
        ("verify", "clips/", "--output", "out", "--dataset", "d", "--model", "m"),
        ("drop", "--output", "out", "--dataset", "d", "--model", "m", "--yes"),
        ("manifest", "clips/", "-o", "m.csv"),
        ("extract", "clips/", "--output", "out", "--dataset", "d", "--model", "resnet18"),
    ],
)
def test_a_wrong_endpoint_is_one_line_without_the_key_in_it(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--endpoint-url", "me:HIDDEN@h:9000"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "endpoint_url: must not hold a user or a password" in line
    assert "HIDDEN" not in line


def test_flags_alone() -> None:
    values = job_values(
        {
            "manifest": ("a", "b"),
            "output": "out",
            "dataset": "d",
            "model": ("resnet18", "c=r3d_18"),
            "limit": None,
            "weights": (),
        }
    )
    assert values == {
        "manifest": ("a", "b"),
        "output": "out",
        "dataset": "d",
        "models": [{"network": "resnet18"}, {"label": "c", "network": "r3d_18"}],
    }


def test_a_flag_beats_the_file(job: str) -> None:
    values = job_values({"config": job, "output": "s3://b/o", "max_failed": 0.1, "manifest": ()})
    assert (values["output"], values["max_failed"], values["manifest"]) == ("s3://b/o", 0.1, "a.csv")
    assert [m["network"] for m in values["models"]] == ["resnet18", "r3d_18"]
    assert job_values({"config": job, "model": ("vgg11",)})["models"] == [{"network": "vgg11"}]


def test_a_value_for_all_or_for_one_label(job: str) -> None:
    models = _models(config=job, weights=("random:0", "c3d=random:1"), precision=("resnet18=fp16",))
    assert [m["weights"] for m in models] == ["random:0", "random:1"]
    assert [m["precision"] for m in models] == ["fp16", "bf16"]


def test_hashes_of_weights_reach_the_models_they_fit() -> None:
    flow, frame = _models(
        model=("i3d_flow", "resnet18"), weights_sha256=("resnet18=" + "a" * 64,), flow_weights_sha256=("b" * 64,)
    )
    assert (flow["flow_weights_sha256"], frame["weights_sha256"]) == ("b" * 64, "a" * 64)
    assert "weights_sha256" not in flow
    assert "flow_weights_sha256" not in frame


def test_the_hash_of_weights_is_for_a_backbone(tmp_path: Path) -> None:
    pin = ["--weights-sha256", "abc", "--out", str(tmp_path / "o")]
    asked = CliRunner().invoke(cli, ["train", "videos.csv", "--backbone", "resnet18", *pin])
    assert "weights_sha256: 'abc' must be the 64 hex digits" in str(asked.exception or asked.output)
    asked = CliRunner().invoke(cli, ["train", "--head", "linear", *pin])
    assert "--weights-sha256: means nothing when a head is trained" in str(asked.exception or asked.output)


def test_values_with_equals_signs_are_values() -> None:
    (model,) = _models(model=("r3d_18",), clip_sampling=("frames=8,stride=2",), weights=("s3://b/x=1/w.pth",))
    assert model["clip_sampling"] == "frames=8,stride=2"
    assert model["weights"] == "s3://b/x=1/w.pth"
    (model,) = _models(model=("c=r3d_18",), clip_sampling=("c=frames=8,stride=2",))
    assert model["clip_sampling"] == "frames=8,stride=2"


def test_the_label_of_ones_own_network_is_what_stands_behind_the_colon() -> None:
    models = _models(model=("nets:tiny", "timm:resnet18.a1_in1k", "b=nets:tiny"), weights=("tiny=random:1", "b=w.pth"))
    assert [m.get("weights") for m in models] == ["random:1", None, "w.pth"]
    with pytest.raises(ConfigError, match=r"'teeny' is not the label of a model \(tiny, resnet18.a1_in1k\)"):
        _models(model=("nets:tiny", "timm:resnet18.a1_in1k"), weights=("teeny=random:1",))


def test_an_unknown_label_is_named_with_the_known_ones(job: str) -> None:
    with pytest.raises(
        ConfigError, match=r"--frame-sampling c4d=all: 'c4d' is not the label of a model \(resnet18, c3d\)"
    ):
        job_values({"config": job, "frame_sampling": ("c4d=all",)})


def test_models_in_a_file_are_a_list_of_mappings(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("models: resnet18\n")
    with pytest.raises(ConfigError, match="must be a list of mappings"):
        job_values({"config": str(path)})


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0
    assert "Example:" in result.output
    assert f"featlib {command}" in result.output


def test_every_field_of_a_job_is_an_option() -> None:
    from featlib.config import ExtractConfig, ModelConfig

    options = {p.name for p in cli.commands["extract"].params}
    fields = {*ExtractConfig.model_fields, *ModelConfig.model_fields} - {"models", "network", "label"}
    assert fields - options == set()


def test_every_field_of_an_aggregation_is_an_option() -> None:
    from featlib.config import AggregateConfig

    assert AggregateConfig.model_fields.keys() - {p.name for p in cli.commands["aggregate"].params} == set()


def run_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


EXTRACT = ("extract", "clips/", "--output", "out", "--dataset", "mine", "--model", "resnet18")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("extract",), "manifest: "),
        ((*EXTRACT, "--max-failed", "2"), "max_failed"),
        ((*EXTRACT, "--dataset", "001"), "dataset: '001'"),
        ((*EXTRACT, "--weights", "x=random:0"), "'x' is not the label"),
        ((*EXTRACT, "--frame-sampling", "sometimes"), "frame sampling 'sometimes' is not known"),
        ((*EXTRACT, "--config", "/none.yaml"), "--config /none.yaml: cannot be read"),
        ((*EXTRACT, "--model", "resnet1800", "--model", "a=resnet18"), "resnet18"),
        (("verify", "/none.csv", "--output", "out", "--dataset", "001", "--model", "m"), "'001'"),
        (("drop", "--output", "out", "--dataset", "d", "--model", "m", "--yes"), "there is no model=m"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    arguments: tuple[str, ...], text: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, out, err = run_command(capsys, *arguments)
    lines = [line for line in err.splitlines() if not line.endswith("featlib: reading weights")]
    assert (code, out) == (2, "")
    assert len(lines) == 1
    assert lines[0].startswith("featlib: ")
    assert text in lines[0]
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [("extract", "--no-such"), (*EXTRACT, "--limit", "many"), (*EXTRACT, "--device", "tpu"), ("dance",)]
)
def test_wrong_usage_is_exit_2(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    code, _, err = run_command(capsys, *arguments)
    assert code == 2
    assert "Error: " in err
    assert "Traceback" not in err


def test_a_stopped_job_is_one_line_and_exit_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> Summary:
        raise StoppedError("the store is\naway")

    monkeypatch.setattr("featlib.job.extract", stopped)
    assert run_command(capsys, *EXTRACT) == (1, "", "featlib: the store is away\n")


def test_no_message_steers_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(*_: object, **__: object) -> Summary:
        raise StoppedError("a\nb \x1b[2J\x9b31m\x00\x7f\u0090 ü")

    monkeypatch.setattr("featlib.job.extract", stops)
    assert run_command(capsys, *EXTRACT) == (1, "", "featlib: a b ?[2J?31m??? ü\n")


def test_no_room_for_temporary_files_is_one_line_and_exit_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> Summary:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("featlib.job.extract", full)
    code, out, err = run_command(capsys, *EXTRACT)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"featlib: the folder for temporary files ({tempfile.gettempdir()}): No space left on device")


@pytest.mark.parametrize(("failed", "code"), [(0, 0), (1, 3)])
def test_the_summary_decides_the_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, failed: int, code: int
) -> None:
    summary = Summary("mine", {"ok": 4, "failed": failed}, {}, {}, {}, {}, 0.05)
    monkeypatch.setattr("featlib.job.extract", lambda *_, **__: summary)
    got, out, _ = run_command(capsys, *EXTRACT, "--json")
    assert got == code
    assert f'"exit_code": {code}' in out


def _published(folder: Path) -> Store:
    store = Store(str(folder / "out"))
    planned(store, ["v0"])
    staged(store, "r-0", [Item("v0")])
    publish(store)
    partition.register(store, KEYS, provenance("a"))
    return store


def test_verify_says_complete_or_exits_3(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store = _published(tmp_path)
    manifest = tmp_path / "list.csv"
    manifest.write_text("uri,media_id\n/v/v0.mp4,v0\n")
    arguments = ("verify", str(manifest), "--output", store.url, "--dataset", "d", "--model", "a")
    code, out, _ = run_command(capsys, *arguments)
    assert (code, out.splitlines()[-1]) == (0, "complete")
    manifest.write_text("uri,media_id\n/v/v0.mp4,v0\n/v/v1.mp4,v1\n")
    code, out, _ = run_command(capsys, *arguments)
    assert (code, out.splitlines()[-1]) == (3, "NOT complete")


def test_drop_asks_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store = _published(tmp_path)
    arguments = ["drop", "--output", store.url, "--dataset", "d", "--model", "a"]
    asked = CliRunner().invoke(cli, arguments, input="n\n")
    assert asked.exit_code == 1
    assert store.list("features")
    assert CliRunner().invoke(cli, [*arguments, "--yes"]).output.startswith("removed ")
    assert store.list("") == []
