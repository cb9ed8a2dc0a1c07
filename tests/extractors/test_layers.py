import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, squeezenet1_1

from featlib.errors import ConfigError
from featlib.extractors import layers


class _Tokens(nn.Module):
    """Registers its layers in another order than it runs them, and keeps tokens up to the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.first = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


def test_last_layer_is_the_last_to_run_and_tokens_are_averaged() -> None:
    network, x = _Tokens().eval(), torch.rand(2, 5, 3)
    assert layers.last_learned_layer(network, x) == "last"
    features = layers.cut(network, ["penultimate"], "last")(x)[0]
    torch.testing.assert_close(features, network.first(x).mean(dim=1))


def test_convolution_as_last_layer_is_averaged_over_space() -> None:
    network, x = squeezenet1_1().eval(), torch.rand(2, 3, 64, 64)
    features = layers.cut(network, ["penultimate"], layers.last_learned_layer(network, x))(x)[0]
    torch.testing.assert_close(features, network.features(x).mean(dim=(2, 3)))


def test_logits_and_probabilities() -> None:
    network, x = resnet18(num_classes=7).eval(), torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(layers.cut(network, ["logits"], "fc")(x)[0], network(x))
    probabilities = layers.cut(network, ["probabilities"], "fc")(x)[0]
    torch.testing.assert_close(probabilities, network(x).softmax(1))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))


def test_nodes_keep_their_shape() -> None:
    network, x = resnet18().eval(), torch.rand(2, 3, 64, 64)
    through = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool, network.layer1)
    torch.testing.assert_close(layers.cut(network, ["layer1"], "fc")(x)[0], through(x))
    names = layers.node_names(network)
    assert {"layer1", "layer1.0.conv1", "avgpool", "flatten"} <= set(names)


def test_unknown_node_lists_near_names() -> None:
    with pytest.raises(ConfigError, match="--layer layer5: no such layer; did you mean layer"):
        layers.cut(resnet18(), ["layer5"], "fc")


def test_shallow_and_deep_layers_come_from_one_forward() -> None:
    network, x = resnet18(num_classes=7).eval(), torch.rand(2, 3, 64, 64)
    names = ["layer1.0.conv1", "penultimate", "layer4", "probabilities", "logits"]
    alone = [layers.cut(network, [name], "fc")(x)[0] for name in names]
    calls = []
    network.conv1.register_forward_hook(lambda *_: calls.append(1))
    for value, expected in zip(layers.cut(network, names, "fc")(x), alone, strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    assert len(calls) == 1


class _Careless(nn.Module):
    """Writes into what it computed before, calls its last layer by keyword, and computes something behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.first(x)).mean(dim=(2, 3))
        out = self.fc(input=h)
        h.mul_(0)
        self.unused = h.sum(dim=1)
        return out


@pytest.mark.parametrize("others", [["penultimate"], ["logits"], ["relu"], ["probabilities", "relu", "penultimate"]])
def test_a_feature_does_not_depend_on_what_else_is_asked(others: list[str]) -> None:
    torch.manual_seed(0)
    network, x = _Careless().eval(), torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        plain = {"first": network.first(x)}
        plain["relu"] = plain["first"].relu()
        plain["penultimate"] = plain["relu"].mean(dim=(2, 3))
        plain["logits"] = network.fc(plain["penultimate"])
        plain["probabilities"] = plain["logits"].softmax(1)
        names = ["first", *others]
        for name, value in zip(names, layers.cut(network, names, "fc")(x), strict=True):
            torch.testing.assert_close(value, plain[name])
        assert (plain["first"] < 0).any()


def test_layers_of_a_published_network_before_a_relu_that_writes_in_place() -> None:
    network, x = resnet18().eval(), torch.rand(1, 3, 64, 64) - 0.5
    with torch.inference_mode():
        for name in ("bn1", "layer1.0.bn1", "layer1.0.add"):
            alone = layers.cut(network, [name], "fc")(x)[0]
            beside = layers.cut(network, [name, "penultimate", "logits"], "fc")(x)[0]
            assert torch.equal(alone, beside), name
