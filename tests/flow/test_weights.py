"""``--flow-weights``: real files of RAFT, drawn weights, and every refusal."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torchvision.models.optical_flow import Raft_Large_Weights, Raft_Small_Weights, raft_small

from featlib.config import ModelConfig
from featlib.errors import ConfigError
from featlib.extractors.resolve import resolve
from featlib.extractors.weights import cache_path
from featlib.flow import weights
from featlib.flow.build import open_estimator
from featlib.flow.weights import FlowWeights, flow_network, load_flow_weights
from featlib.storage import StoreOptions
from tests.flow.textures import moving

OPTIONS = StoreOptions()


def drawn(seed: int) -> Mapping[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state: Mapping[str, torch.Tensor] = raft_small(weights=None).state_dict()
    return state


STATE = drawn(7)


def load(text: object, name: str = "raft_small") -> FlowWeights:
    return load_flow_weights(name, str(text), OPTIONS)


def refused(text: object, name: str = "raft_small") -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, name)
    message = str(caught.value)
    assert "\n" not in message
    assert " --weights" not in f" {message}"
    return message


def assert_holds(payload: bytes, state: Mapping[str, torch.Tensor]) -> None:
    got = safetensors.torch.load(payload)
    assert got.keys() == state.keys()
    assert all(torch.equal(got[k], state[k]) for k in state)


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_random_weights_are_the_bare_constructors_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    got = load("random:7")
    assert torch.equal(torch.get_rng_state(), before)
    assert_holds(got.payload, STATE)
    assert got.source == "random:7"
    assert got.sha256 == load("random:7").sha256 != load("random:8").sha256


@pytest.mark.parametrize("prefix", ["", "module.", "module.model."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_pth_with_wrappers_and_prefixes(tmp_path: Path, prefix: str, wrapper: str | None) -> None:
    state = {f"{prefix}{k}": v for k, v in STATE.items()}
    path = save(tmp_path / "raft.pth", {"epoch": 1, wrapper: state} if wrapper else state)
    got = load(path)
    assert_holds(got.payload, STATE)
    assert got.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert got.source == str(path)


def test_safetensors_and_what_an_estimator_makes_of_it(tmp_path: Path) -> None:
    path = tmp_path / "raft.safetensors"
    safetensors.torch.save_file({f"module.{k}": v.clone() for k, v in STATE.items()}, path)
    got = load(path)
    assert_holds(got.payload, STATE)
    assert got.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    frames, pairs = moving((0, 0), (2, 1), height=128, width=128), np.array([[0, 1]])
    from_file = open_estimator("raft_small", payload=got.payload).flows(frames, pairs)
    from_seed = open_estimator("raft_small", payload=load("random:7").payload).flows(frames, pairs)
    other = open_estimator("raft_small", payload=load("random:8").payload).flows(frames, pairs)
    assert np.array_equal(from_file, from_seed)
    assert not np.allclose(from_file, other, rtol=0.1)


def test_published_weights_by_name_are_torchvisions() -> None:
    for name, enum in (("raft_large", Raft_Large_Weights), ("raft_small", Raft_Small_Weights)):
        network = flow_network(name)
        assert network.default_pretrained.url == enum.DEFAULT.url
        assert {p.url for p in network.pretrained} == {w.url for w in enum}
        assert all(len(p.hash_prefix) == 8 for p in network.pretrained)


@pytest.mark.parametrize("text", ["default", "V9", "W.V9"])
def test_published_weights_come_from_torchs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    path = save(tmp_path / "raft.pth", STATE)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    network = flow_network("raft_small")
    mine = replace(network.default_pretrained, name="V9", enum="W.V9", url=f"http://127.0.0.1:9/net-{sha256[:8]}.pth")
    monkeypatch.setattr(weights, "flow_network", lambda _: replace(network, pretrained=(mine,), default="V9"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache_path(mine).parent.mkdir(parents=True)
    path.rename(cache_path(mine))
    got = load(text)
    assert_holds(got.payload, STATE)
    assert (got.sha256, got.source) == (sha256, "W.V9")


def test_weights_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = flow_network("raft_small")
    unreachable = replace(network.default_pretrained, url="http://127.0.0.1:9/models/net-0123abcd.pth")
    monkeypatch.setattr(weights, "flow_network", lambda _: replace(network, pretrained=(unreachable,)))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    message = refused("default")
    assert unreachable.url in message
    assert str(tmp_path / "hub" / "checkpoints" / "net-0123abcd.pth") in message
    assert "give --flow-weights PATH or --flow-weights random:SEED" in message


def test_a_damaged_file_in_the_cache_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = cache_path(flow_network("raft_small").default_pretrained)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half of it")
    assert "is damaged" in refused("Raft_Small_Weights.C_T_V2")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("C_T_V3", "did you mean C_T_V2"),
        ("Raft_Large_Weights.C_T_V2", "raft_small has C_T_V1, C_T_V2"),
        ("random", "write random:0"),
        ("random:-1", "whole number"),
        ("nowhere/raft.pth", "cannot be read"),
    ],
)
def test_wrong_names(text: str, hint: str) -> None:
    message = refused(text)
    assert hint in message
    assert message.startswith(f"--flow-weights {text}: ")


@pytest.mark.parametrize("name", ["tvl1", "farneback", "dis"])
def test_opencvs_sources_have_no_weights(name: str) -> None:
    assert f"{name} has no weights" in refused("default", name)


def test_a_file_is_held_to_its_sha256(tmp_path: Path) -> None:
    path = save(tmp_path / "raft.pth", STATE)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    values = {"network": "i3d_flow", "weights": "random:0", "flow": "raft_small", "flow_weights": str(path)}
    config = ModelConfig.model_validate({**values, "flow_weights_sha256": right.upper()})
    flow = resolve(config, OPTIONS).input.flow
    assert flow is not None
    assert flow.method is not None
    assert flow.method.weights_sha256 == right
    path.write_bytes(b"no weights at all")
    message = rf"--flow-weights .*has the SHA-256 [0-9a-f]{{64}}, not {right} as --flow-weights-sha256 asks"
    with pytest.raises(ConfigError, match=message):
        resolve(config, OPTIONS)
    with pytest.raises(ConfigError, match=r"--flow-weights-sha256 .*random:0 is no file"):
        load_flow_weights("raft_small", "random:0", OPTIONS, right)
    for wrong in ("abc", f"{right}+{right}"):
        with pytest.raises(ValueError, match="64 hex digits"):
            ModelConfig.model_validate({**values, "flow_weights_sha256": wrong})


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    first = next(iter(STATE))
    cases = {
        f"missing {first}": {k: v for k, v in STATE.items() if k != first},
        "unknown head.weight": {**STATE, "head.weight": torch.zeros(2)},
        f"other shape {first} is (1, 2)": {**STATE, first: torch.zeros(1, 2)},
        f"{first} holds NaN": {**STATE, first: torch.full_like(STATE[first], float("nan"))},
        "is not a tensor": {"epoch": 3, **STATE},
    }
    for hint, state in cases.items():
        message = refused(save(tmp_path / "w.pth", state))
        assert hint in message
        assert str(tmp_path / "w.pth") in message
    assert "do not fit raft_large" in refused(save(tmp_path / "w.pth", STATE), "raft_large")
    (tmp_path / "w.pth").write_bytes(b"no weights at all")
    assert "--flow-weights" in refused(tmp_path / "w.pth")
