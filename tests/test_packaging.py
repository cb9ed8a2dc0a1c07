"""What is shipped, what is exported, what importing loads, and who may import whom."""

import ast
import configparser
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import featlib
from featlib.cli import cli
from featlib.layout import Keys
from featlib.shards.schema import FEATURES, OUTCOMES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "featlib"
HEAVY = ("torch", "torchvision", "ray", "av", "pandas", "pyarrow", "fsspec", "s3fs", "PIL", "numpy", "pydantic")
_NO_TORCH = ("manifest", "plan", "work", "storage", "shards", "config", "train_config", "errors", "spec", "sampling")
NO_TORCH = (*_NO_TORCH, "layout", "media/sampling")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = f"from hatchling.build import build_wheel; print(build_wheel({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    packed = {name for name in names if name.startswith("featlib/")}
    assert packed == {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")}
    info = f"featlib-{featlib.__version__}.dist-info/"
    assert all(name.startswith(info) for name in set(names) - packed)
    assert f"{info}licenses/LICENSE" in names


def test_wheel_has_the_command_and_the_packages_version(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"featlib-{featlib.__version__}.dist-info"
    entry = configparser.ConfigParser()
    entry.read_string(archive.read(f"{info}/entry_points.txt").decode())
    assert dict(entry["console_scripts"]) == {"featlib": "featlib.cli:main"}
    metadata = archive.read(f"{info}/METADATA").decode()
    assert f"\nVersion: {featlib.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata


def test_installed_wheel_reads_help_from_its_own_files(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import featlib.cli as c; print(c.__file__); c.main()"
    done = run(script, "--help")
    assert done[0] == str(tmp_path / "featlib" / "cli.py")
    assert "extract" in " ".join(done)


def run(script: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd="/", capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def loaded(script: str) -> set[str]:
    """The top-level modules that ``script`` has loaded at its end."""
    lines = run(f"{script}\nimport json, sys\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))")
    return set(json.loads(lines[-1]))


@pytest.mark.parametrize("module", ["featlib", "featlib.cli", "featlib.errors", "featlib.spec"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    assert loaded(f"import {module}").isdisjoint(HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], ["extract", "--help"], ["models", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = f"from click.testing import CliRunner; from featlib.cli import cli; CliRunner().invoke(cli, {arguments})"
    assert loaded(script).isdisjoint(HEAVY)


def test_reading_features_loads_no_torch_ray_or_av(tmp_path: Path) -> None:
    for keys, schema in ((Keys("d").features("m"), FEATURES), (Keys("d").outcomes("m"), OUTCOMES)):
        (tmp_path / keys).mkdir(parents=True)
        pq.write_table(schema.empty_table(), tmp_path / keys / "part-00000.parquet")
    script = f"""
import featlib
features = featlib.open_features({str(tmp_path)!r}, dataset="d", model="m")
assert len(features.to_pandas()) == len(features.outcomes()) == len(features.to_numpy()) == 0
"""
    modules = loaded(script)
    assert "pandas" in modules
    assert modules.isdisjoint({"torch", "torchvision", "ray", "av"})


def test_exported_names() -> None:
    assert featlib.__all__ == [
        "AggregateConfig",
        "ClipSampling",
        "ConfigError",
        "ExtractConfig",
        "FeatlibError",
        "Features",
        "FinetuneConfig",
        "FinetuneResult",
        "FrameSampling",
        "InputSpec",
        "MediaError",
        "ModelConfig",
        "Network",
        "PixelSpec",
        "StoppedError",
        "Summary",
        "TrainConfig",
        "TrainSummary",
        "aggregate",
        "extract",
        "finetune",
        "open_features",
        "own_network",
        "train",
    ]
    for name in featlib.__all__:
        assert getattr(featlib, name).__name__ == name
        assert name in dir(featlib)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = featlib.nothing


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """The full names of the modules that a file imports, without those imported for annotations only."""
    tree = ast.parse(path.read_text())
    nodes: list[ast.AST] = [n for n in tree.body if not is_type_checking(n)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        deeper = not (top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        nodes.extend(n for n in ast.iter_child_nodes(node) if deeper and not is_type_checking(n))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def importers(*modules: str) -> set[str]:
    """The files of the package that import one of ``modules``."""
    return {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] in modules for name in imports(path))
    }


def test_only_dataflow_nodes_and_submission_know_ray() -> None:
    assert importers("ray") == {"dataflow.py", "nodes.py", "submission.py"}


def test_only_media_knows_the_decoder_and_images() -> None:
    files = importers("av", "PIL")
    assert files
    assert {file.split("/")[0] for file in files} == {"media"}


def test_only_storage_knows_the_object_store_clients() -> None:
    files = importers("fsspec", "s3fs", "boto3", "botocore", "aiobotocore")
    assert files
    assert {file.split("/")[0] for file in files} == {"storage"}


def files_of(part: str) -> list[Path]:
    one = PACKAGE / f"{part}.py"
    return [one] if one.is_file() else sorted((PACKAGE / part).rglob("*.py"))


@pytest.mark.parametrize("part", NO_TORCH)
def test_no_torch_in(part: str) -> None:
    """Neither in its files nor in what importing them loads."""
    files = files_of(part)
    assert files
    assert all(name.split(".")[0] not in ("torch", "torchvision") for file in files for name in imports(file))
    names = [str(file.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__") for file in files]
    assert loaded("\n".join(f"import {name}" for name in names)).isdisjoint({"torch", "torchvision", "ray", "av"})


def test_errors_know_only_how_keys_are_blotted_out() -> None:
    (file,) = files_of("errors")
    assert {name for name in imports(file) if name.startswith("featlib")} <= {
        "featlib.redaction",
        "featlib.redaction.redact",
    }


_JOB = ("featlib.plan", "featlib.work", "featlib.dataflow", "featlib.nodes")


@pytest.mark.parametrize(
    ("part", "must_not_know"),
    [
        ("redaction", ("featlib.",)),
        ("sampling", ("featlib.",)),
        ("storage", ("featlib.manifest", "featlib.media", "featlib.extractors", "featlib.shards", *_JOB)),
        ("manifest", ("featlib.media", "featlib.extractors", "featlib.shards", *_JOB)),
        ("plan", ("featlib.media", "featlib.extractors", "featlib.inference", "featlib.shards", *_JOB[1:])),
        ("work", ("featlib.media", "featlib.extractors", "featlib.inference", "featlib.shards", *_JOB[2:])),
        ("media", ("featlib.extractors", "featlib.inference", "featlib.shards", *_JOB)),
        ("extractors", ("featlib.media", "featlib.shards", *_JOB)),
        ("heads", ("featlib.media", "featlib.shards", *_JOB)),
        ("inference", ("featlib.media", "featlib.shards", *_JOB)),
        ("shards", ("featlib.media", "featlib.extractors", "featlib.inference", *_JOB[2:])),
    ],
)
def test_imports_go_one_way(part: str, must_not_know: tuple[str, ...]) -> None:
    for file in files_of(part):
        for name in imports(file):
            assert not name.startswith(must_not_know), f"{file.relative_to(ROOT)} imports {name}"


def test_spec_knows_only_sampling() -> None:
    (file,) = files_of("spec")
    assert {name.rpartition(".")[0] for name in imports(file) if name.startswith("featlib.")} == {"featlib.sampling"}


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_with_an_example_and_a_line_in_the_readme(name: str) -> None:
    shown = CliRunner().invoke(cli, [name, "--help"])
    assert shown.exit_code == 0
    examples = re.findall(rf"^\s*featlib {name} .*", shown.output.partition("Example:")[2], re.MULTILINE)
    assert examples, f"{name} --help shows no example"
    assert cli.commands[name].help
    assert f"featlib {name}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_of_every_command_says_what_it_does(name: str) -> None:
    options = [p for p in cli.commands[name].params if isinstance(p, click.Option)]
    assert [option.name for option in options if not option.help] == []
