"""Weights files that would run code, or take more memory than they are long."""

import io
import json
import math
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import resnet18

from featlib.errors import ConfigError
from featlib.extractors import metadata, state_dict
from tests.extractors.weight_files import SQUEEZENET, Trap, resolved, saved


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    sprung = tmp_path / "sprung"
    path = tmp_path / "w.pth"
    torch.save({"a": Trap(sprung)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConfigError, match=r"save model\.state_dict\(\) alone"):
        resolved("squeezenet1_1", path)
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ConfigError):
        resolved("squeezenet1_1", path)
    assert not sprung.exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "raw", "raw, protocol 0", "in a tensor's place", "tar"])
def test_no_kind_of_pickle_writes_the_canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    sprung, path = tmp_path / "sprung", tmp_path / "w.pth"
    trap = Trap(sprung)
    if kind in ("zip", "legacy"):
        torch.save(trap, path, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "in a tensor's place":
        torch.save({**SQUEEZENET.construct(()).state_dict(), "classifier.1.bias": trap}, path)
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            for name in ("sys_info", "pickle", "storages", "tensors"):
                data = pickle.dumps(trap)
                header = tarfile.TarInfo(name)
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))
    else:
        path.write_bytes(pickle.dumps(trap, protocol=0 if kind.endswith("0") else 4))
    with pytest.raises(ConfigError, match=r"w\.pth"):
        resolved("squeezenet1_1", path)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(trap))  # it would have
    assert sprung.exists()


def _claiming(path: Path, shape: tuple[int, ...], kind: str) -> None:
    """A file of a few hundred bytes that says it holds a tensor of ``shape``."""
    if kind == "safetensors":
        nbytes = 4 * math.prod(shape)
        header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, nbytes]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        return
    expanded = torch.zeros(1).as_strided(shape, (0,) * len(shape))  # one number, whatever the shape
    torch.save({"classifier.1.weight": expanded}, path, _use_new_zipfile_serialization=kind == "pth")


@pytest.mark.parametrize("kind", ["safetensors", "pth", "legacy.pth"])
def test_a_file_that_claims_a_million_million_numbers_costs_no_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"w.{kind}"
    _claiming(path, (1_000_000, 1_000_000), kind)
    assert path.stat().st_size < 10_000
    with pytest.raises(ConfigError, match=r"w\.") as caught:
        resolved("squeezenet1_1", path)
    assert "allocate" not in str(caught.value), "the memory for it was asked for"


def test_a_long_header_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As JSON it takes many times the memory, and safetensors would take a hundred million bytes."""

    def read(text: bytes) -> dict[str, Any]:
        raise AssertionError(f"{len(text)} bytes were read")

    path = tmp_path / "w.safetensors"
    header = b'{"a":[' + b"[]," * 3_500_000 + b"[]]}"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    monkeypatch.setattr(metadata.json, "loads", read)
    monkeypatch.setattr(state_dict.safetensors.torch, "load", read)
    with pytest.raises(ConfigError, match=r"its header has 10500010 bytes, at most 10000000 are read"):
        resolved("squeezenet1_1", path)


def test_a_file_that_unpacks_to_more_than_it_is_long_is_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "w.pth", tmp_path / "o.pth"
    torch.save({"classifier.1.weight": torch.zeros(4 << 20)}, path)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as packed:
        for info in whole.infolist():
            packed.writestr(info.filename, whole.read(info))
    assert other.stat().st_size < 100_000
    with pytest.raises(ConfigError, match=r"o\.pth: unpacks to 16"):
        resolved("squeezenet1_1", other)


def test_more_classes_than_the_file_has_room_for_are_refused(tmp_path: Path) -> None:
    """The number of classes comes from the file, so the network would be built as large as it says."""
    state = resnet18().state_dict()
    state |= {"fc.weight": torch.zeros(1).expand(2_000_000_000, 512), "fc.bias": torch.zeros(1).expand(2_000_000_000)}
    path = saved(tmp_path / "w.pth", state)
    with pytest.raises(ConfigError, match=r"w\.pth: fc\.weight claims 4096000000000 bytes, the file has"):
        resolved("resnet18", path)


class _Asks:
    """A pickle that asks for memory by itself."""

    def __init__(self, kind: type, size: int) -> None:
        self.kind, self.size = kind, size

    def __reduce__(self) -> tuple[object, ...]:
        return self.kind, (self.size,)


@pytest.mark.parametrize("form", ["zip", "legacy", "raw"])
def test_a_pickle_that_asks_for_memory_gets_none(tmp_path: Path, form: str) -> None:
    path, asks = tmp_path / "w.pth", _Asks(bytearray, 100_000_000_000)
    if form == "raw":
        path.write_bytes(pickle.dumps(asks, protocol=2))
    else:
        torch.save({"a": asks}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ConfigError, match=r"w\.pth: ('a' is not a tensor|not a readable .*torch\.save did not write)"):
        resolved("squeezenet1_1", path)


def test_an_archive_with_two_directories_is_refused(tmp_path: Path) -> None:
    """Each reader would believe another one."""
    path = tmp_path / "w.pth"
    torch.save({"classifier.1.weight": torch.zeros(4)}, path)
    path.write_bytes(b"PK\x03\x04" + path.read_bytes())
    with pytest.raises(ConfigError, match=r"w\.pth: damaged archive"):
        resolved("squeezenet1_1", path)


def test_an_archive_that_only_some_can_read_is_refused(tmp_path: Path) -> None:
    """Python's zipfile gives up where the version is unknown; torch's reader does not look at it."""
    path = tmp_path / "w.pth"
    torch.save({"classifier.1.weight": torch.zeros(4)}, path)
    data = path.read_bytes()
    at = data.index(b"PK\x01\x02")
    path.write_bytes(data[: at + 6] + b"\xff\0" + data[at + 8 :])
    with pytest.raises(ConfigError, match=r"w\.pth: damaged archive"):
        resolved("squeezenet1_1", path)


def test_a_state_dict_that_holds_itself_is_refused(tmp_path: Path) -> None:
    state: dict[str, Any] = {}
    state["model"] = state
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps(state, protocol=2))
    with pytest.raises(ConfigError, match=r"w\.pth"):
        resolved("squeezenet1_1", path)
    torch.save(state, path)
    with pytest.raises(ConfigError, match="'model' is not a tensor"):
        resolved("squeezenet1_1", path)
