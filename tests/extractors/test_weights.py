import hashlib
import math
import pickle
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torchvision.models import densenet121, googlenet, mnasnet0_5, resnet18, squeezenet1_1, vit_b_32

from featlib.config import ModelConfig
from featlib.errors import ConfigError
from featlib.extractors import registry, weights
from featlib.extractors.network import own_network
from featlib.extractors.resolve import ResolvedModel, resolve
from featlib.extractors.state_dict import RawState, is_finite, read_state_dict, usable
from featlib.extractors.weights import WeightsChoice, payload, resolve_weights
from tests.extractors.tiny_networks import tiny
from tests.extractors.weight_files import OPTIONS, SQUEEZENET, Trap, resolved, saved


def tensors(model: ResolvedModel) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(payload(model, OPTIONS))


@pytest.fixture(scope="module")
def squeezenet() -> nn.Module:
    torch.manual_seed(1)
    return squeezenet1_1()


def test_names_of_weights() -> None:
    network = registry.network("resnet50")
    v2 = network.default_pretrained
    for text in ("default", "IMAGENET1K_V2", "ResNet50_Weights.IMAGENET1K_V2", "ResNet50_Weights.DEFAULT"):
        assert resolve_weights(network, text) == WeightsChoice(pretrained=v2)
    assert resolve_weights(network, "random:12") == WeightsChoice(seed=12)
    assert resolve_weights(network, "s3://b/w.pth") == WeightsChoice(url="s3://b/w.pth")
    assert resolve_weights(network, "w.safetensors") == WeightsChoice(url="w.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 77, 999])
def test_one_value_that_is_no_number_is_seen(dtype: torch.dtype, value: float, at: int) -> None:
    tensor = torch.linspace(-5, 5, 1000, dtype=dtype)
    assert is_finite(tensor)
    tensor[at] = value
    assert not is_finite(tensor)


def test_what_holds_no_number_or_only_whole_ones_is_finite() -> None:
    assert all(map(is_finite, (torch.zeros(0), torch.tensor(3), torch.tensor([True]))))
    assert not is_finite(torch.tensor(math.nan))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("IMAGENET1K_V3", "did you mean IMAGENET1K_V2"),
        ("ResNet18_Weights.IMAGENET1K_V1", "these are weights of resnet18, not of resnet50"),
        ("random", "write random:0"),
        ("random:-1", "whole number"),
        ("random:x", "whole number"),
    ],
)
def test_wrong_names_of_weights(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_weights(registry.network("resnet50"), text)
    assert "\n" not in str(caught.value)


def test_random_weights_are_the_bare_constructors_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    model = resolved("resnet18", "random:5")
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = resnet18().state_dict()
    got = tensors(model)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[k], expected[k]) for k in expected)
    assert model.weights_sha256 == resolved("resnet18", "random:5").weights_sha256
    assert model.weights_sha256 != resolved("resnet18", "random:6").weights_sha256
    assert model.weights_source == "random:5"


def test_random_googlenet_draws_its_numbers_in_the_constructors_order() -> None:
    model = resolved("googlenet", "random:5")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = googlenet(init_weights=True).state_dict()
    assert torch.equal(tensors(model)["fc.weight"], expected["fc.weight"])
    assert dict(model.settings)["transform_input"] is False


def test_file_of_googlenet_turns_its_input_around_and_needs_no_auxiliary_heads(tmp_path: Path) -> None:
    state = googlenet(init_weights=False, num_classes=3).state_dict()
    model = resolved("googlenet", saved(tmp_path / "w.pth", state))
    assert dict(model.settings)["transform_input"] is True
    assert model.num_classes == 3
    assert not any(k.startswith("aux") for k in tensors(model))


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model."])
def test_wrappers_and_prefixes_are_undone(tmp_path: Path, squeezenet: nn.Module, wrapper: str, prefix: str) -> None:
    state = squeezenet.state_dict()
    wrapped = {"epoch": 1, wrapper: {f"{prefix}{k}": v for k, v in state.items()}}
    got = tensors(resolved("squeezenet1_1", saved(tmp_path / "w.pth", wrapped)))
    assert all(torch.equal(got[k], state[k]) for k in state)
    assert got.keys() == state.keys()


def test_sha256_is_that_of_the_file(tmp_path: Path, squeezenet: nn.Module) -> None:
    path = saved(tmp_path / "w.pth", squeezenet.state_dict())
    model = resolved("squeezenet1_1", path)
    assert model.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.weights_source == str(path)


def test_half_precision_files_become_float32(tmp_path: Path, squeezenet: nn.Module) -> None:
    state = {k: v.half() for k, v in squeezenet.state_dict().items()}
    got = tensors(resolved("squeezenet1_1", saved(tmp_path / "w.pth", state)))
    assert {v.dtype for v in got.values()} == {torch.float32}


@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float8_e8m0fnu, torch.float8_e5m2],
)
@pytest.mark.parametrize("name", ["features.0.weight", "classifier.1.bias"])
def test_numbers_that_are_not_the_weights_themselves_are_refused(
    tmp_path: Path, squeezenet: nn.Module, dtype: torch.dtype, name: str
) -> None:
    state = squeezenet.state_dict()
    path = saved(tmp_path / "w.pth", {**state, name: state[name].abs().to(dtype)})
    with pytest.raises(ConfigError, match=rf"other type {name} is {dtype}; save them in float32"):
        resolved("squeezenet1_1", path)


def test_complex_numbers_under_an_old_name_are_refused(tmp_path: Path) -> None:
    """It becomes today's name only when the network loads it."""
    old = {k.replace("mlp.0", "mlp.linear_1"): v for k, v in vit_b_32(num_classes=2).state_dict().items()}
    old = {k: v.to(torch.complex64) if "linear_1" in k else v for k, v in old.items()}
    with pytest.raises(ConfigError, match=r"mlp\.linear_1\.weight is torch\.complex64"):
        resolved("vit_b_32", saved(tmp_path / "w.pth", old))


def test_an_old_name_beside_todays_is_refused(tmp_path: Path) -> None:
    """Which of the two were meant?"""
    state = {"conv1.bias": torch.zeros(1), "features.0.bias": torch.ones(1)}
    for given in (state, dict(reversed(state.items()))):
        with pytest.raises(ConfigError, match=r"holds conv1\.bias of c3d twice, once as \w.*; remove the one"):
            usable(registry.network("c3d"), RawState(given, {}), "w.pth")


@pytest.mark.parametrize("form", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("x\nfeatlib: all is well\x1b[2J\x9b31m", r"x\nfeatlib: all is well\x1b[2J\x9b31m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("y" * 900, "y" * 80 + "…"),
        ("Schicht-ü", "Schicht-ü"),
    ],
)
def test_names_in_a_file_are_shown_on_one_short_line(
    tmp_path: Path, squeezenet: nn.Module, name: str, shown: str, form: str
) -> None:
    path, state = tmp_path / f"w.{form}", {**squeezenet.state_dict(), name: torch.ones(1)}
    torch.save(state, path) if form == "pth" else safetensors.torch.save_file(state, path)
    with pytest.raises(ConfigError) as caught:
        resolved("squeezenet1_1", path)
    assert f"unknown {shown};" in str(caught.value)
    for content in ({name: 3}, {name: torch.zeros(1).expand(1_000_000)}, {name: torch.ones(2).to_sparse()}):
        with pytest.raises(ConfigError) as caught:
            resolved("squeezenet1_1", saved(tmp_path / "o.pth", content))
        assert shown in str(caught.value)
        assert str(caught.value).isprintable()


def test_a_name_is_as_long_as_a_layers_may_be(tmp_path: Path, squeezenet: nn.Module) -> None:
    longest = {**squeezenet.state_dict(), "y" * 1000: torch.ones(1)}
    with pytest.raises(ConfigError, match="unknown yyy"):
        resolved("squeezenet1_1", saved(tmp_path / "w.pth", longest))
    with pytest.raises(ConfigError, match="yyy… has 1001 characters, a layer's name at most 1000"):
        resolved("squeezenet1_1", saved(tmp_path / "w.pth", {"y" * 1001: torch.ones(1)}))


def test_prefixes_are_undone_some_times_and_not_for_ever(tmp_path: Path) -> None:
    """Each costs a walk over all names, and a file of names that are nothing else holds very many."""
    deep = {"module." * 8 + "a": torch.ones(1)}
    assert list(read_state_dict(saved(tmp_path / "w.pth", deep).read_bytes(), "w").tensors) == ["a"]
    deeper = {"module." * 100 + "a": torch.ones(1)}
    assert list(read_state_dict(saved(tmp_path / "w.pth", deeper).read_bytes(), "w").tensors) == ["module." * 92 + "a"]
    with pytest.raises(ConfigError, match=r"module\.mod… has 7001 characters"):
        read_state_dict(saved(tmp_path / "w.pth", {"module." * 1000 + "a": torch.ones(1)}).read_bytes(), "w")


def test_old_densenet_names_and_files_without_versions(tmp_path: Path) -> None:
    state = densenet121(num_classes=2).state_dict()
    old = {k.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): v for k, v in state.items()}
    assert old.keys() != state.keys()
    assert tensors(resolved("densenet121", saved(tmp_path / "d.pth", old))).keys() == state.keys()
    safetensors.torch.save_file(mnasnet0_5(num_classes=2).state_dict(), tmp_path / "m.safetensors")
    assert resolved("mnasnet0_5", tmp_path / "m.safetensors").num_classes == 2


def test_old_transformer_names_are_converted_as_torchvision_does(tmp_path: Path) -> None:
    state = vit_b_32(num_classes=2).state_dict()
    old = OrderedDict(
        (k.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"), v) for k, v in state.items()
    )
    assert old.keys() != state.keys()
    assert tensors(resolved("vit_b_32", saved(tmp_path / "v.pth", old))).keys() == state.keys()


def without(state: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {k: v for k, v in state.items() if k not in keys}


def test_files_that_do_not_fit(tmp_path: Path, squeezenet: nn.Module) -> None:
    state = squeezenet.state_dict()
    first = "features.0.weight"
    cases = [
        (without(state, first), r"missing features\.0\.weight"),
        ({**state, "extra.weight": torch.zeros(1)}, r"unknown extra\.weight"),
        ({**state, first: torch.zeros(8, 3, 3, 3)}, r"features\.0\.weight is \(8, 3, 3, 3\), not \(64, 3, 3, 3\)"),
        (resnet18().state_dict(), r"missing .* and \d+ more; unknown .* and \d+ more"),
        ({"state_dict": {}}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
        ({"epoch": 3}, "'epoch' is not a tensor"),
        (without(state, "classifier.1.weight"), r"missing classifier\.1\.weight"),
        ({**state, first: state[first] * float("nan")}, "NaN"),
    ]
    for content, message in cases:
        with pytest.raises(ConfigError, match=message) as caught:
            resolved("squeezenet1_1", saved(tmp_path / "w.pth", content))
        assert "\n" not in str(caught.value)


def test_nan_in_the_last_layer_only_matters_to_logits(tmp_path: Path, squeezenet: nn.Module) -> None:
    state = {**squeezenet.state_dict(), "classifier.1.bias": torch.full((1000,), float("nan"))}
    path = saved(tmp_path / "w.pth", state)
    assert resolved("squeezenet1_1", path).feature_shape == (512,)
    assert resolved("squeezenet1_1", path, layer="features").feature_shape == (512, 13, 13)
    with pytest.raises(ConfigError, match=r"layer logits of squeezenet1_1 depends on classifier\.1\.bias"):
        resolved("squeezenet1_1", path, layer="logits")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04garbage", b"garbage" * 9, b"\x08\0\0\0\0\0\0\0{garbage"])
def test_damaged_files(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"w\.pth"):
        resolved("squeezenet1_1", path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.pth"):
        resolved("squeezenet1_1", tmp_path / "none.pth")


@pytest.mark.parametrize("kind", ["meta", "sparse", "quantized"])
def test_tensors_that_are_not_plain_are_refused(tmp_path: Path, squeezenet: nn.Module, kind: str) -> None:
    bias = squeezenet.state_dict()["classifier.1.bias"]
    other = {
        "meta": bias.to("meta"),
        "sparse": bias.to_sparse(),
        "quantized": torch.quantize_per_tensor(bias, 0.1, 0, torch.qint8),
    }[kind]
    path = saved(tmp_path / "w.pth", {**squeezenet.state_dict(), "classifier.1.bias": other})
    with pytest.raises(
        ConfigError, match=r"w\.pth: (classifier\.1\.bias is no plain tensor|holds 'torch\.QInt8Storage')"
    ):
        resolved("squeezenet1_1", path)


def test_metadata_that_cannot_be_are_a_line(tmp_path: Path, squeezenet: nn.Module) -> None:
    path = tmp_path / "w.safetensors"
    for text in (
        '{"__metadata__": null}',
        '{"__metadata__": ' + "[" * 100_000,
        '{"w": {"dtype": "F8_E8M0", "shape": []}}',
    ):
        path.write_bytes(len(text).to_bytes(8, "little") + text.encode())
        with pytest.raises(ConfigError, match=r"w\.safetensors"):
            resolved("squeezenet1_1", path)
    state = OrderedDict(squeezenet.state_dict())
    for versions in (5, {"": "text"}, {"": {"version": "text"}}):
        state._metadata = versions  # type: ignore[attr-defined]
        assert resolved("squeezenet1_1", saved(tmp_path / "w.pth", state)).feature_shape == (512,)


def test_a_file_is_held_to_its_sha256(tmp_path: Path, squeezenet: torch.nn.Module) -> None:
    path = saved(tmp_path / "w.pth", squeezenet.state_dict())
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert resolved("squeezenet1_1", path, weights_sha256=right.upper()).weights_sha256 == right
    path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(ConfigError, match=rf"has the SHA-256 [0-9a-f]{{64}}, not {right}"):
        resolved("squeezenet1_1", path, weights_sha256=right)  # told before anything in it is looked at
    with pytest.raises(ConfigError, match="random:0 is no file"):
        resolve(ModelConfig(network="squeezenet1_1", weights="random:0", weights_sha256=right), OPTIONS)
    with pytest.raises(ValueError, match="64 hex digits"):
        ModelConfig(network="squeezenet1_1", weights_sha256="abc")


def test_weights_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    unreachable = replace(SQUEEZENET.default_pretrained, url="http://127.0.0.1:9/models/net-0123abcd.pth")
    with pytest.raises(ConfigError) as caught:
        weights.read_weights(SQUEEZENET, WeightsChoice(pretrained=unreachable), OPTIONS)
    message = str(caught.value)
    assert unreachable.url in message
    assert str(tmp_path / "hub" / "checkpoints" / "net-0123abcd.pth") in message
    assert "--weights" in message
    assert "\n" not in message


def test_a_damaged_file_in_the_cache_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = weights.cache_path(SQUEEZENET.default_pretrained)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half of it")
    with pytest.raises(ConfigError, match="is damaged"):
        resolved("squeezenet1_1", "default")


def test_published_weights_come_from_the_cache_and_are_recognised_by_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, squeezenet: nn.Module
) -> None:
    path = saved(tmp_path / "w.pth", squeezenet.state_dict())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    v1 = SQUEEZENET.default_pretrained
    mine = replace(v1, name="V9", enum="W.V9", url=f"http://127.0.0.1:9/net-{sha256[:8]}.pth")
    network = replace(SQUEEZENET, pretrained=(v1, mine))
    assert weights.read_weights(network, WeightsChoice(url=str(path)), OPTIONS).pretrained == mine
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = weights.cache_path(mine)
    cached.parent.mkdir(parents=True)
    path.rename(cached)
    assert weights.read_weights(network, WeightsChoice(pretrained=mine), OPTIONS).sha256 == sha256


def test_files_of_one_name_at_two_places_are_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    for author in ("alice", "bob"):
        (tmp_path / author).mkdir()
        path = saved(tmp_path / author / "model.pth", {"a": torch.full((1,), len(author))})
        network = own_network(author, nn.Identity, tiny.default_pretrained.input, url=path.as_uri())
        for _ in range(2):  # the second time from the cache
            file = weights.read_weights(network, resolve_weights(network, "default"), OPTIONS)
            assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(list(weights.cache_path(network.default_pretrained).parent.iterdir())) == 2


def test_a_date_in_the_name_of_ones_own_file_is_no_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    path = saved(tmp_path / "tiny-20240115.pth", {"a": torch.ones(1)})
    network = own_network("own", nn.Identity, tiny.default_pretrained.input, url=path.as_uri())
    assert network.default_pretrained.hash_prefix == ""
    assert weights.read_weights(network, resolve_weights(network, "default"), OPTIONS).data == path.read_bytes()


def test_payload_is_read_again_in_another_process_and_must_be_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, squeezenet: nn.Module
) -> None:
    path = saved(tmp_path / "w.pth", squeezenet.state_dict())
    model = resolved("squeezenet1_1", path)
    first = payload(model, OPTIONS)
    monkeypatch.setattr(weights, "_PAYLOADS", {})
    assert payload(model, OPTIONS) == first
    monkeypatch.setattr(weights, "_PAYLOADS", {})
    saved(path, {k: v + 1 for k, v in squeezenet.state_dict().items()})
    with pytest.raises(ConfigError, match="the file changed"):
        payload(model, OPTIONS)
    path.write_bytes(b"no weights at all")
    with pytest.raises(ConfigError, match="the file changed"):  # told before anything in it is looked at
        payload(model, OPTIONS)


def test_payload_of_a_network_behind_a_detector_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = resolved("crop:ssdlite320_mobilenet_v3_large+squeezenet1_1", "random:1+random:2")
    first = payload(model, OPTIONS)
    monkeypatch.setattr(weights, "_PAYLOADS", {})
    assert payload(model, OPTIONS) == first


@pytest.mark.parametrize(
    ("network", "changes", "message"),
    [
        ("two_stream_resnet18", {"conv1.weight": torch.zeros(64, 3, 7, 7, dtype=torch.int64)}, "do not fit two_stream"),
        ("vit_b_32", {"encoder.pos_embedding": torch.zeros(1, 0, 768)}, r"encoder\.pos_embedding is \(1, 0, 768\)"),
        ("vit_b_32", {"conv_proj.weight": torch.tensor(1.0)}, r"conv_proj\.weight is \(\)"),
    ],
)
def test_tensors_of_impossible_types_and_shapes_are_a_line(
    tmp_path: Path, network: str, changes: dict[str, torch.Tensor], message: str
) -> None:
    state = resnet18().state_dict() if network == "two_stream_resnet18" else vit_b_32().state_dict()
    with pytest.raises(ConfigError, match=message) as caught:
        resolved(network, saved(tmp_path / "w.pth", {**state, **changes}))
    assert "\n" not in str(caught.value)


def test_real_weights_know_what_they_see(weights_folder: Path) -> None:
    model = resolved("squeezenet1_1", weights_folder / "squeezenet1_1-imagenet.pth")
    assert model.num_classes == 1000
    assert model.input == SQUEEZENET.default_pretrained.input


def with_metadata(path: Path, text: str) -> Path:
    torch.manual_seed(0)
    path.write_bytes(safetensors.torch.save(squeezenet1_1(num_classes=2).state_dict(), metadata={"featlib": text}))
    return path


def test_class_names_and_preprocessing_come_from_the_files_metadata(tmp_path: Path) -> None:
    text = '{"network": "squeezenet1_1", "classes": ["dog", "cat"], "preprocess": "ResNet50_Weights.IMAGENET1K_V2"}'
    path = with_metadata(tmp_path / "w.safetensors", text)
    model = resolved("squeezenet1_1", path)
    assert model.categories == ("dog", "cat")
    assert model.input.pixels.resize == (232,)
    assert resolved("squeezenet1_1", path, preprocess="IMAGENET1K_V1").input.pixels.resize == (256,)
    assert model.semantics() == replace(model, categories=()).semantics()


def test_class_names_of_published_weights_are_the_publishers() -> None:
    published = SQUEEZENET.default_pretrained.categories
    assert len(published) == 1000
    assert published[:2] == ("tench", "goldfish")
    assert resolved("squeezenet1_1", "random:0").categories == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "its metadata under 'featlib' must be JSON with network, classes"),
        ('{"network": "squeezenet1_1"}', "its metadata under 'featlib' must be JSON with network, classes"),
        ('{"network": "n", "classes": [1, 2], "preprocess": "p"}', "its metadata under 'featlib' must be JSON"),
        ("[]", "its metadata under 'featlib' must be JSON"),
        (
            '{"network": "squeezenet1_1", "classes": ["a"], "preprocess": "SqueezeNet1_1_Weights.IMAGENET1K_V1"}',
            "name 1 classes, but have 2 outputs",
        ),
        (
            '{"network": "squeezenet1_1", "classes": [], "preprocess": "R3D_18_Weights.KINETICS400_V1"}',
            "were trained with the preprocessing R3D_18_Weights.KINETICS400_V1, which squeezenet1_1 cannot have",
        ),
    ],
)
def test_metadata_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved("squeezenet1_1", with_metadata(tmp_path / "w.safetensors", text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
