"""The conformance test that users run: it passes what is right and names what is wrong."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import featlib
from featlib.errors import ConfigError
from featlib.extractors import registry
from featlib.extractors.conformance import Finding, check
from featlib.extractors.network import Network
from tests.extractors import tiny_networks as nets
from tests.extractors.conformance import CHECKS
from tests.extractors.tiny_networks import FRAMES, tiny, tiny_clips
from tests.test_cli import run_command


def found(network: Network | str, **settings: str) -> dict[str, Finding]:
    findings = check(network, **settings)
    assert tuple(f.check for f in findings) == CHECKS
    return {f.check: f for f in findings}


def failed(network: Network | str, **settings: str) -> set[str]:
    return {name for name, finding in found(network, **settings).items() if finding.passed is not True}


@pytest.mark.parametrize("network", [tiny, tiny_clips, replace(tiny, layer="logits"), replace(tiny, layer="second")])
def test_right_networks_pass_every_check(network: Network) -> None:
    assert failed(network) == set()


def own(constructor: type[nn.Module]) -> Network:
    return featlib.own_network("wrong", constructor, FRAMES)


@pytest.mark.parametrize(
    ("constructor", "checks"),
    [
        (nets.DropoutLeftOn, {"determinism", "batch invariance", "agreement"}),
        (nets.NormAlwaysTrains, {"eval mode", "batch invariance"}),
        (nets.NormOfTheBatch, {"eval mode", "batch invariance"}),
        (nets.Neighbours, {"batch invariance"}),
        (nets.LooksAhead, {"batch invariance"}),
        (nets.Float64, {"dtype"}),
        (nets.Random, {"determinism", "batch invariance", "agreement"}),
        (nets.Blind, {"response"}),
        (nets.CountsCalls, {"eval mode"}),
        (nets.ForgetsItsClasses, {"weights .pth"}),
    ],
)
def test_wrong_networks_are_refused(constructor: type[nn.Module], checks: set[str]) -> None:
    assert checks <= failed(own(constructor))


def test_a_network_in_double_precision_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"wrong does not take an input of 32x32 \(Input type \(float\) and bias type"
    ):
        check(featlib.own_network("wrong", lambda: nets.Tiny().double(), FRAMES))
    findings = found(featlib.own_network("wrong", lambda: nets.AllFloat64().double(), FRAMES))
    assert findings["dtype"].message.startswith("not float32: ")
    assert "the last layer's input is torch.float64" in findings["dtype"].message


@pytest.mark.parametrize(
    "reads",
    [
        replace(FRAMES, order="bgr"),
        replace(FRAMES, mean=(0.4, 0.5, 0.61)),
        replace(FRAMES, std=(0.2, 0.25, 0.301)),
    ],
)
def test_another_preprocessing_than_that_of_the_plain_forward_is_refused(
    reads: featlib.InputSpec, tmp_path: Path
) -> None:
    """The plain forward here is written out for ``FRAMES``, so it also shows what ``plain_forward`` is for."""
    torch.manual_seed(3)
    network = nets.Tiny().eval()
    torch.save(network.state_dict(), tmp_path / "tiny.pth")

    def plain(clips: object) -> Tensor:
        x = torch.as_tensor(clips)[:, 0].permute(0, 3, 1, 2).double() / 255
        x = (x - torch.tensor(FRAMES.mean).double()[:, None, None]) / torch.tensor(FRAMES.std).double()[:, None, None]
        y = network.second(network.norm(network.first(x.float())).relu())
        return y.relu().mean(dim=(2, 3))

    def wrong(reads: featlib.InputSpec) -> set[str]:
        chosen = featlib.own_network("chosen", nets.Tiny, reads)
        findings = check(chosen, weights=str(tmp_path / "tiny.pth"), plain_forward=plain)
        return {f.check for f in findings if not f.passed}

    assert wrong(FRAMES) == set()
    assert "agreement" in wrong(reads)


def test_a_figure_stands_beside_what_was_measured() -> None:
    findings = found(own(nets.LooksAhead))
    figure = findings["batch invariance"].figure
    assert figure is not None
    assert 1e-5 < figure < 0.1
    assert findings["batch invariance"].message == "a clip's feature depends on its neighbours in the batch"
    assert found(tiny)["batch invariance"].figure == pytest.approx(0, abs=1e-5)


def test_a_lent_network_is_given_back() -> None:
    squeezenet = registry.network("squeezenet1_1")
    lent = replace(tiny, name="squeezenet1_1")
    assert found(lent)["shape"].message == "(16,)"
    assert registry.network("squeezenet1_1") is squeezenet
    assert registry.describe("squeezenet1_1").feature_shape == (512,)
    with pytest.raises(ConfigError, match="no such network"):
        registry.network("tiny")


def test_what_cannot_be_built_is_an_error_of_one_line() -> None:
    def broken() -> nn.Module:
        raise KeyError("no\nsuch width")

    with pytest.raises(ConfigError, match=r"wrong: its constructor raised KeyError: 'no\\nsuch width'") as caught:
        check(featlib.own_network("wrong", broken, FRAMES))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"its constructor gave a int, not a torch\.nn\.Module"):
        check(featlib.own_network("wrong", lambda: 3, FRAMES))
    with pytest.raises(ConfigError, match="Identity runs no linear or convolution layer"):
        check(featlib.own_network("wrong", nn.Identity, FRAMES))


def test_layers_of_a_network_without_a_graph_are_the_named_ones() -> None:
    branches = own(nets.Branches)
    assert failed(branches) == set()
    with pytest.raises(ConfigError, match=r"--layer: Branches cannot be traced .*; use penultimate, logits"):
        check(replace(branches, layer="first"))


def test_the_command_prints_a_table_and_exits_3_when_a_check_fails(capsys: pytest.CaptureFixture[str]) -> None:
    module = "tests.extractors.tiny_networks"
    code, out, err = run_command(capsys, "models", f"{module}:tiny", "--check")
    assert (code, err) == (0, "")
    assert [line.split("  ")[0] for line in out.splitlines()[1:]] == list(CHECKS)
    code, out, _ = run_command(capsys, "models", f"{__name__}:wrong", "--check", "--json")
    assert code == 3
    assert {f["check"] for f in json.loads(out) if not f["passed"]} == {"dtype"}
    code, out, err = run_command(capsys, "models", f"{module}:tiny", "--check", "--weights", "nowhere.pth")
    assert (code, out) == (2, "")
    assert "nowhere.pth: cannot be read" in err
    assert run_command(capsys, "models", "--check")[0] == 2
    assert run_command(capsys, "models", "resnet18", "--weights", "random:0")[0] == 2


wrong = own(nets.Float64)
