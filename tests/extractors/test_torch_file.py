"""Files of ``torch.save``: the same as torch reads, whatever stands beside the weights, and no memory for what asks."""

import argparse
import datetime
import io
import json
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featlib.errors import ConfigError
from featlib.extractors import torch_pickle
from featlib.extractors.state_dict import read_state_dict
from featlib.extractors.torch_file import read_torch_file
from featlib.extractors.torch_pickle import TorchFileError, TorchPickle, Unread

_HEADROOM = 1 << 30  # bytes that a child may take beyond torch itself
_ROWS = 1_000_000_000


def saved(content: object, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def trained() -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """A network after a step, with what a training keeps beside it."""
    torch.manual_seed(4)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(network.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    network(torch.rand(5, 3)).sum().backward()
    optimizer.step()
    scheduler.step()
    return network, optimizer, scheduler


def same(tensors: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    return list(tensors) == list(state) and all(
        tensors[k].dtype == v.dtype and tensors[k].shape == v.shape and torch.equal(tensors[k], v)
        for k, v in state.items()
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_gives_its_state_dict_whatever_stands_beside(zipped: bool) -> None:
    network, optimizer, scheduler = trained()
    state = network.state_dict()
    checkpoint = {
        "epoch": 3,
        "best": (0.5, -1, 2**70, None, True),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "random": torch.get_rng_state(),
        "history": {"loss": [0.5, 0.25], "lr": {"1": 1e-3}},
        "classes": {"cat", "dog"},
        "count": Counter("aab"),
        "kinds": [torch.float32, torch.Size([2, 3]), torch.device("cpu"), 1 + 2j, b"abc", bytearray(b"abc")],
        "state_dict": state,
    }
    raw = read_state_dict(saved(checkpoint, zipped), "w.pth")
    assert same(raw.tensors, state)
    assert raw.versions == state._metadata  # type: ignore[attr-defined]
    assert raw.versions["1"]["version"] == 2
    told: Any = read_torch_file(saved(checkpoint, zipped)).content
    names = ("epoch", "best", "history")
    assert {k: told[k] for k in names} == {k: checkpoint[k] for k in names}
    assert told["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]
    assert told["classes"] == Unread("__builtin__.set")


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_those_that_torch_reads(zipped: bool) -> None:
    shared = torch.arange(12.0)
    noted, marked = nn.Parameter(torch.rand(2)), torch.rand(2)
    noted.note = marked.note = "x"  # type: ignore[attr-defined]
    types = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool)
    state = {
        **{str(dtype): torch.arange(5).to(dtype) for dtype in (*types, torch.int16, torch.int32, torch.complex64)},
        "whole": shared,
        "again": shared,
        "part": shared[5:],
        "turned": shared.view(3, 4).t(),
        "expanded": torch.ones(1).expand(2, 3),
        "none": torch.zeros(0, 3),
        "one": torch.tensor(3.0),
        "parameter": nn.Parameter(torch.rand(2)),
        "noted": noted,
        "marked": marked,
    }
    data = saved(state, zipped)
    tensors, expected = read_state_dict(data, "w.pth").tensors, torch.load(io.BytesIO(data), weights_only=True)
    assert same(tensors, expected)
    assert {k: v.stride() for k, v in tensors.items()} == {k: v.stride() for k, v in expected.items()}
    assert tensors["whole"].data_ptr() == tensors["again"].data_ptr() == tensors["turned"].data_ptr()
    assert not any(v.requires_grad for v in tensors.values())


def test_types_without_a_storage_of_their_own() -> None:
    types = (torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2)
    state = {str(dtype): torch.arange(5).to(dtype) for dtype in types}
    tensors = read_state_dict(saved(state), "w.pth").tensors
    assert all(
        v.dtype == state[k].dtype and v.view(torch.uint8).equal(state[k].view(torch.uint8)) for k, v in tensors.items()
    )


class _Pickler(pickle.Pickler):
    """Writes storages by their keys, as torch does."""

    def persistent_id(self, obj: object) -> object:
        return obj.told if isinstance(obj, _Stored) else None


class _Stored:
    def __init__(self, *told: object) -> None:
        self.told = told


class _Calls:
    """Is pickled as a call of ``function``."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.function, self.arguments


def pickled(content: object) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, protocol=2).dump(content)
    return stream.getvalue()


def row_of_pickles(content: object, storages: dict[str, Tensor]) -> bytes:
    """A file in the format before torch 1.6."""
    told = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, content, list(storages))
    data = b"".join(pickled(part) for part in told)
    return data + b"".join(struct.pack("<q", t.numel()) + t.numpy().tobytes() for t in storages.values())


def test_a_file_of_python_2_and_a_view_of_a_storage() -> None:
    numbers = torch.arange(10.0)
    whole = _Stored("storage", torch.FloatStorage, "7", "cuda:0", 10, None)
    part = _Stored("storage", torch.FloatStorage, "7", "cpu", 10, ("8", 4, 5))
    pairs = [
        ["a", _Calls(torch._utils._rebuild_tensor, whole, 2, (2, 3), (3, 1))],
        ["b", _Calls(torch._utils._rebuild_tensor, part, 1, (4,), (1,))],
    ]
    data = row_of_pickles(_Calls(OrderedDict, pairs), {"7": numbers})
    tensors = read_state_dict(data, "w.pth").tensors
    assert same(tensors, {"a": numbers[2:8].view(2, 3), "b": numbers[5:9]})
    part.told = (*part.told[:-1], ("8", 6, 5))
    with pytest.raises(ConfigError, match="a storage is none"):
        read_state_dict(row_of_pickles(_Calls(OrderedDict, pairs), {"7": numbers}), "w.pth")


def rewritten(data: bytes, changed: Mapping[str, bytes]) -> bytes:
    """The archive with other bytes in the members that are called so."""
    other = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(other, "w") as copy:
        for info in archive.infolist():
            copy.writestr(info.filename, changed.get(info.filename.rpartition("/")[2], archive.read(info)))
    return other.getvalue()


def test_a_file_of_a_machine_of_the_other_byte_order() -> None:
    state = {"a": torch.arange(6.0), "b": torch.arange(3)}
    turned = {
        "a": torch.from_numpy(state["a"].numpy().byteswap()),
        "b": torch.from_numpy(state["b"].numpy().byteswap()),
    }
    assert same(read_state_dict(rewritten(saved(turned), {"byteorder": b"big"}), "w.pth").tensors, state)


@pytest.mark.parametrize("order", [b"BIG", b"", b"big\n", b"\x1b[2J" * 100])
def test_a_byte_order_that_is_none_is_refused(order: bytes) -> None:
    with pytest.raises(ConfigError, match=r"w\.pth: damaged archive \(its byte order is ") as caught:
        read_state_dict(rewritten(saved({"a": torch.ones(1)}), {"byteorder": order}), "w.pth")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("member", ["data.pkl", "byteorder", "data/0"])
def test_a_flipped_bit_is_seen(member: str) -> None:
    data = saved({"a": torch.arange(1000.0)})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        at = data.index(archive.read(f"archive/{member}"))
    flipped = data[: at + 3] + bytes([data[at + 3] ^ 0x40]) + data[at + 4 :]
    with pytest.raises(ConfigError, match=rf"w\.pth: damaged archive \(Bad CRC-32 for file 'archive/{member}'\)"):
        read_state_dict(flipped, "w.pth")


def test_a_file_that_was_written_without_checksums_is_read() -> None:
    state = {"a": torch.arange(10.0)}
    torch.serialization.set_crc32_options(False)
    try:
        data = saved(state)
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {info.CRC for info in archive.infolist()} == {0}
    assert same(read_state_dict(data, "w.pth").tensors, state)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(5, (6,), (1,)), (0, (2, 6), (5, 1)), (11, (1,), (0,)), (2**62, (1,), (1,)), (0, (2,), (2**62,))],
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    stored = _Stored("storage", torch.FloatStorage, "0", "cpu", 10, None)
    content = {"a": _Calls(torch._utils._rebuild_tensor, stored, offset, shape, strides)}
    with pytest.raises(ConfigError, match=r"w\.pth: is damaged: a tensor is longer than what is stored"):
        read_state_dict(row_of_pickles(content, {"0": torch.zeros(10)}), "w.pth")


@pytest.mark.parametrize(("length", "claimed"), [(-1, 10), (10**15, 10), (5, 10), (10, 10**15)])
def test_a_storage_that_is_not_there_is_refused(length: int, claimed: int) -> None:
    stored = _Stored("storage", torch.FloatStorage, "0", "cpu", claimed, None)
    content = {"a": _Calls(torch._utils._rebuild_tensor, stored, 0, (10,), (1,))}
    data = row_of_pickles(content, {"0": torch.zeros(10)})
    at = len(data) - 40 - 8
    with pytest.raises(ConfigError, match=r"w\.pth: is damaged"):
        read_state_dict(data[:at] + struct.pack("<q", length) + data[at + 8 :], "w.pth")


def test_a_tensor_without_numbers_is_no_wider_than_its_file() -> None:
    """Its width can be a number of classes, and so the size of a network."""
    with pytest.raises(ConfigError, match=r"fc\.weight claims 0 bytes"):
        read_state_dict(saved({"fc.weight": torch.zeros(2_000_000_000, 0)}), "w.pth")


def test_a_damaged_file_is_a_line() -> None:
    """Each byte of the pickle once replaced: read all the same, or refused."""
    for zipped in (True, False):
        data = saved({"state_dict": nn.Linear(2, 2).state_dict(), "epoch": 3}, zipped)
        told = [""] * min(len(data), 1000)
        for at in range(0, len(told), 3):
            try:
                read_state_dict(data[:at] + bytes([data[at] ^ 0x15]) + data[at + 1 :], "w.pth")
            except ConfigError as error:
                told[at] = str(error)
        assert not any("\n" in line for line in told)
        assert 0 < sum(map(bool, told)) < len(told) / 3


_CHILD = """
import json, pathlib, resource, sys
from featlib.errors import ConfigError
from featlib.extractors.state_dict import read_state_dict
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
told = {}
for path in sys.argv[2:]:
    try:
        told[path] = sorted(read_state_dict(pathlib.Path(path).read_bytes(), "w.pth").tensors)
    except ConfigError as error:
        told[path] = str(error)
print(json.dumps(told))
"""


def test_calls_that_fill_memory_are_not_made(tmp_path: Path) -> None:
    """Each of these functions is one that torch's own reader of weights calls with whatever a file gives it."""
    rows = torch.zeros(1).expand(_ROWS, 2)
    copy = torch._utils._rebuild_device_tensor_from_cpu_tensor
    calls: dict[str, tuple[object, str]] = {
        "copy": (_Calls(copy, rows, torch.float64, "cpu", False), "a is no plain tensor on the CPU"),
        "set": (_Calls(set, rows), "'a' is not a tensor"),
        "counter": (_Calls(Counter, rows), "'a' is not a tensor"),
        "size": (_Calls(torch.Size, torch.zeros(1, dtype=torch.int64).expand(_ROWS)), "'a' is not a tensor"),
        "ordered": (_Calls(OrderedDict, rows), "holds an OrderedDict made of other things than pairs"),
        "bytearray": (_Calls(bytearray, 100 * _ROWS), "'a' is not a tensor"),
    }
    paths = {}
    for name, (call, message) in calls.items():
        for zipped in (True, False):
            path = tmp_path / f"{name}{zipped}.pth"
            path.write_bytes(saved({"a": call}, zipped))
            paths[str(path)] = message
            assert path.stat().st_size < 3000
    beside = tmp_path / "beside.pth"
    beside.write_bytes(saved({"state_dict": {"b": torch.ones(2)}, "a": calls["set"][0]}))
    command = [sys.executable, "-c", _CHILD, str(_HEADROOM), *paths, str(beside)]
    told = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert told.pop(str(beside)) == ["b"]
    assert {path: paths[path] in str(told[path]) for path in paths} == dict.fromkeys(paths, True), told


def test_a_list_that_is_named_again_and_again_is_counted_each_time() -> None:
    pairs = [[str(n), n] for n in range(10_000)]
    copies = [_Calls(OrderedDict, pairs) for _ in range(500)]
    data = saved({"a": copies})
    assert len(data) < 1_000_000
    with pytest.raises(ConfigError, match=r"w\.pth: holds more than 4,000,000 things beside its numbers"):
        read_state_dict(data, "w.pth")


def test_more_things_than_a_state_dict_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_pickle, "_MOST_STEPS", 1000)
    assert read_torch_file(saved([[]] * 50)).content == [[]] * 50
    with pytest.raises(TorchFileError, match="holds more than 1,000 things"):
        read_torch_file(saved([[] for _ in range(1001)]))


class _Outer:
    class Inner:
        pass

    class Mode(Enum):
        FINE = 1


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_of_a_class_within_a_class_are_marks_like_others(zipped: bool) -> None:
    """Protocol 2 names such a class by a call of ``getattr``."""
    state = {"w": torch.ones(2)}
    data = saved({"state_dict": state, "beside": [_Outer.Inner(), _Outer.Mode.FINE]}, zipped)
    assert same(read_state_dict(data, "w.pth").tensors, state)


def test_another_protocol_is_refused_with_the_way_out() -> None:
    stream = io.BytesIO()
    torch.save({"w": torch.ones(2)}, stream, pickle_protocol=4)
    with pytest.raises(ConfigError, match="save it without pickle_protocol"):
        read_state_dict(stream.getvalue(), "w.pth")


def test_numbers_of_one_hash_are_no_work_of_hours() -> None:
    """A dict of them takes the square of their number."""
    numbers = b"".join(b"\x8a\x0b" + (i * (2**61 - 1)).to_bytes(11, "little") + b"K\x01" for i in range(1, 200_000))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02}(" + numbers + b"u.")
        file.writestr("a/version", b"3\n")
    with pytest.raises(ConfigError):
        read_state_dict(archive.getvalue(), "w.pth")


def test_keys_are_not_hashed_for_ever() -> None:
    """Python would look at each of its two to the power of a hundred parts: a tuple does not keep its hash."""
    key = b")" + b"q\x00h\x00\x86" * 100
    told: Any = TorchPickle(io.BytesIO(b"\x80\x02}" + key + b"K\x01s.")).run()
    assert list(told.values()) == [1]


@pytest.mark.parametrize("key", [(0, 1), b"a"])
def test_what_is_no_name_is_none_in_a_state_dict_either(key: object) -> None:
    state = {"w": torch.ones(2)}
    assert same(read_state_dict(saved({"state_dict": state, "sizes": {key: 2}}), "w.pth").tensors, state)
    with pytest.raises(ConfigError, match=r"w\.pth: 'a key that is no name' is not a tensor"):
        read_state_dict(saved({**state, key: torch.ones(2)}), "w.pth")


class _Own:
    """A class of somebody's training, of which the reader has nothing."""

    def __init__(self) -> None:
        self.weight, self.names = torch.ones(2), ["a"]


class _OwnDict(dict[str, int]):
    pass


class _OwnList(list[int]):
    pass


BESIDE: dict[str, object] = {
    "arguments": argparse.Namespace(lr=0.1, names=["a"], more=argparse.Namespace(x=1)),
    "number": np.float64(0.7),
    "numbers": np.zeros(3),
    "random": (np.random.get_state(), random.getstate()),
    "defaults": defaultdict(float, a=1.0),
    "queue": deque([1, 2]),
    "path": Path("a"),
    "when": datetime.datetime(2026, 1, 1),
    "frozen": frozenset([1]),
    "range": range(3),
    "own": [_Own(), _OwnDict(a=1, b=2), _OwnList([1, 2])],
    "module": nn.Linear(1, 1),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", BESIDE)
def test_what_a_training_keeps_beside_its_weights_is_not_read(name: str, zipped: bool) -> None:
    state = {"w": torch.ones(2)}
    data = saved({"state_dict": state, "beside": BESIDE[name]}, zipped)
    assert same(read_state_dict(data, "w.pth").tensors, state)
    with pytest.raises(ConfigError, match=r"w\.pth: 'beside' is not a tensor; save model\.state_dict\(\) alone"):
        read_state_dict(saved({**state, "beside": BESIDE[name]}, zipped), "w.pth")


def test_a_whole_module_is_no_state_dict() -> None:
    for content in (nn.Linear(2, 2), {"model": nn.Linear(2, 2)}, {"state_dict": defaultdict(float)}):
        with pytest.raises(ConfigError, match=r"w\.pth: .*save model\.state_dict\(\)"):
            read_state_dict(saved(content), "w.pth")


def test_a_packed_member_is_not_unpacked() -> None:
    """It may say that it is short, and is not."""
    other = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(4)}))) as archive, zipfile.ZipFile(other, "w") as packed:
        for info in archive.infolist():
            kind = zipfile.ZIP_DEFLATED if info.filename.endswith("/0") else zipfile.ZIP_STORED
            packed.writestr(info.filename, archive.read(info), kind)
    with pytest.raises(ConfigError, match=r"w\.pth: unpacks to .*torch\.save packs nothing"):
        read_state_dict(other.getvalue(), "w.pth")


def test_names_in_a_message_are_short_and_on_one_line() -> None:
    name = b"cos\n\x1b[2J" + b"x" * 1000 + b"\n"
    told = b"".join(map(pickled, (0x1950A86A20F9469CFC6C, 1001, {})))
    with pytest.raises(ConfigError, match=r"holds 'os.*which no state dict has") as caught:
        read_state_dict(told + b"\x80\x02(X\x07\0\0\0storage" + name + b"X\1\0\0\0kX\1\0\0\0cK\1tQ.", "w.pth")
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()
