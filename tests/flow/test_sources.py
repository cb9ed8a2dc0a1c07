"""Names, refusals and descriptions of sources, and what importing the package loads."""

import ast
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import featlib.flow
from featlib.errors import ConfigError
from featlib.flow.build import open_estimator
from featlib.flow.sources import SOURCES, check_source, describe_source

PACKAGE = Path(featlib.flow.__file__).parent


def refused(name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_source(name)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"--flow {name}: ")
    return message


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_there(name: str) -> None:
    check_source(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tv-l1", "did you mean tvl1?"),
        ("TVL1", "did you mean tvl1?"),
        ("raft", "did you mean raft_small, raft_large?"),
        ("farnback", "did you mean farneback?"),
        ("xyz", "there are tvl1, farneback, dis, raft_large, raft_small"),
    ],
)
def test_unknown_names(name: str, hint: str) -> None:
    assert hint in refused(name)
    with pytest.raises(ConfigError, match="no such source"):
        describe_source(name)
    with pytest.raises(ConfigError, match="no such source"):
        open_estimator(name)


@pytest.mark.parametrize("name", ["brox", "Brox"])
def test_brox_is_for_cuda_only_and_tvl1_is_offered(name: str) -> None:
    with pytest.raises(ConfigError, match=r"OpenCV has Brox's flow only for CUDA.*use tvl1") as caught:
        check_source(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tvl1", "farneback", "dis"])
def test_without_opencv(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert "pip install 'featlib[flow]'" in refused(name)
    check_source("raft_small")


def test_opencv_without_contrib_lacks_tvl1_only(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = SimpleNamespace(calcOpticalFlowFarneback=print, DISOpticalFlow_create=print)
    monkeypatch.setitem(sys.modules, "cv2", plain)
    message = refused("tvl1")
    assert "without the contrib modules" in message
    assert "pip install 'featlib[flow]'" in message
    check_source("farneback")
    check_source("dis")


def test_descriptions_are_single_lines_that_tell_sources_apart() -> None:
    lines = [describe_source(name) for name in SOURCES]
    assert len(set(lines)) == len(SOURCES)
    assert not any("\n" in line for line in lines)
    assert describe_source("farneback") == (
        "opencv/farneback/1(grey=BT.601,pyr_scale=0.5,levels=3,winsize=15,iterations=3,poly_n=5,poly_sigma=1.2,flags=0)"
    )
    assert describe_source("raft_small") == (
        "torchvision/raft_small/1(updates=12,range=[-1,1],pad=replicate:centred:step=8:least=128,fp32)"
    )


@pytest.mark.parametrize("module", ["sources", "estimate", "build"])
def test_importing_loads_neither_torch_nor_opencv(module: str) -> None:
    script = f"import featlib.flow.{module}, sys; print({{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    loaded = ast.literal_eval(done.stdout)
    assert loaded.isdisjoint({"torch", "torchvision", "cv2", "ray", "av"})


def test_the_package_knows_no_job_no_decoder_and_no_workers() -> None:
    parts = ("dataflow", "nodes", "workers", "work", "media", "plan", "shards")
    forbidden = ("ray", "av", *(f"featlib.{name}" for name in parts))
    files = sorted(PACKAGE.glob("*.py"))
    assert len(files) > 5
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n in forbidden or n.startswith(tuple(f"{f}." for f in forbidden))], file
