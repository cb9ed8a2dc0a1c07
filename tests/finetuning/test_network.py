from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from featlib.config import ModelConfig
from featlib.errors import ConfigError
from featlib.extractors import probe, registry
from featlib.extractors.build import build
from featlib.extractors.metadata import WeightsMetadata
from featlib.extractors.resolve import ResolvedModel, resolve
from featlib.extractors.weights import payload
from featlib.finetuning.network import (
    Layers,
    Trainee,
    as_safetensors,
    find_layers,
    make_plan,
    plan_for,
    preset_enum,
    start,
)
from featlib.storage import StoreOptions

OPTIONS = StoreOptions()


def model(network: str, **settings: Any) -> ResolvedModel:
    return resolve(ModelConfig.model_validate({"network": network, "weights": "random:0", **settings}), OPTIONS)


def trainee(resolved: ResolvedModel, unfreeze: str, *, num_classes: int | None, seed: int = 0) -> Trainee:
    plan = plan_for(resolved, unfreeze, trains_last=num_classes is not None)
    return start(resolved, payload(resolved, OPTIONS), plan, num_classes=num_classes, seed=seed)


def layers_of(name: str) -> tuple[Layers, nn.Module]:
    network = registry.network(name)
    reads = network.default_pretrained.input
    module = probe.skeleton(network, network.settings(probe.side(reads), True)).to("meta")
    frames = 1 if network.kind == "frame" else network.sampling.frames  # type: ignore[union-attr]
    return find_layers(module, torch.empty((1, *probe.input_shape(reads, frames)), device="meta")), module


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "vit_b_32", "swin_t", "convnext_tiny", "factorised3d"])
def test_every_parameter_belongs_to_one_layer_and_the_classifier_is_the_last(name: str) -> None:
    found, module = layers_of(name)
    owned = [p for mine in found.learned.values() for p in mine]
    assert sorted(owned) == sorted(p for p, _ in module.named_parameters())
    last = list(found.learned)[-1]
    assert last == {"resnet18": "fc", "squeezenet1_1": "classifier.1", "vit_b_32": "heads.head", "swin_t": "head"}.get(
        name, {"convnext_tiny": "classifier.2", "factorised3d": "fc"}.get(name)
    )


def test_layers_come_in_the_order_in_which_they_run() -> None:
    found, _ = layers_of("resnet18")
    names = list(found.learned)
    assert names[:3] == ["conv1", "bn1", "layer1.0.conv1"]
    assert names[-4:] == ["layer4.1.bn1", "layer4.1.conv2", "layer4.1.bn2", "fc"]
    downsample = names.index("layer4.0.downsample.0")
    assert downsample == names.index("layer4.0.bn2") + 1  # constructed after, and run after, the block's own layers
    assert len(names) == 41


class _Backwards(nn.Module):
    """Runs its layers in the opposite order of their construction."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.middle, self.first = nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.middle(self.first(x)))
        return out


def test_execution_counts_not_construction() -> None:
    found = find_layers(_Backwards().eval(), torch.zeros(1, 2))
    assert list(found.learned) == ["first", "middle", "last"]
    plan = make_plan(found, "last:2", "last", trains_last=True)
    assert plan is not None
    assert plan.layers == ("middle", "last")
    assert plan.parameters == {"middle.weight", "middle.bias", "last.weight", "last.bias"}


def test_the_projection_inside_an_attention_counts_for_the_attention() -> None:
    found, _ = layers_of("vit_b_32")
    attention = found.learned["encoder.layers.encoder_layer_0.self_attention"]
    assert {p.partition("self_attention.")[2] for p in attention} == {
        "in_proj_weight",
        "in_proj_bias",
        "out_proj.weight",
        "out_proj.bias",
    }


def modes(found: Trainee) -> set[str]:
    with found.learning():
        return {name for name, module in found.network.named_modules() if module.training}


def test_frozen_layers_stay_in_eval_mode_and_dropout_behind_them_drops() -> None:
    resolved = model("mobilenet_v2")
    found = trainee(resolved, "last:1", num_classes=3)
    assert found.plan.layers == ("classifier.1",)
    relu = "features.18.2"  # runs behind the last frozen layer too; to it the mode is all one
    assert modes(found) == {relu, "classifier", "classifier.0", "classifier.1"}
    assert isinstance(found.network.get_submodule("classifier.0"), nn.Dropout)
    assert {n for n, p in found.network.named_parameters() if p.requires_grad} == {
        "classifier.1.weight",
        "classifier.1.bias",
    }
    assert not any(m.training for m in found.network.modules())  # outside of `learning`
    two = trainee(resolved, "last:2", num_classes=3)
    assert two.plan.layers == ("features.18.1", "classifier.1")
    assert isinstance(two.network.get_submodule("features.18.1"), nn.BatchNorm2d)
    assert "features.18.1" in modes(two)
    assert "features.18.0" not in modes(two)
    assert modes(trainee(resolved, "all", num_classes=3)) == {name for name, _ in found.network.named_modules()}


def test_an_embedding_does_not_train_the_last_layer() -> None:
    resolved = model("resnet18")
    found = trainee(resolved, "last:1", num_classes=None)
    assert found.plan.layers == ("layer4.1.bn2",)
    x = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(found.output(x), build(resolved, payload(resolved, OPTIONS))(x)[0])
    assert not any(p.requires_grad for p in trainee(resolved, "all", num_classes=None).network.fc.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("loss_reads_last", "count", "behind"), [(True, 41, ""), (False, 40, " in front of its last one")]
)
def test_more_layers_than_there_are(loss_reads_last: bool, count: int, behind: str) -> None:
    resolved = model("resnet18")
    assert len(plan_for(resolved, f"last:{count}", trains_last=loss_reads_last).layers) == count
    with pytest.raises(ConfigError) as caught:
        plan_for(resolved, f"last:{count + 1}", trains_last=loss_reads_last)
    assert str(caught.value) == (
        f"--unfreeze last:{count + 1}: resnet18 has {count} learned layers{behind}; give all, or last:N with N up to "
        f"{count}"
    )


def test_a_new_last_layer_is_drawn_by_the_seed_and_the_others_are_those_of_the_weights() -> None:
    resolved = model("squeezenet1_1")
    before = safetensors.torch.load(payload(resolved, OPTIONS))
    random_state = torch.get_rng_state()
    states = [trainee(resolved, "all", num_classes=5, seed=seed).network.state_dict() for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, tensor in states[0].items():
        if not name.startswith("classifier.1."):
            assert torch.equal(tensor, before[name])
    heads = [state["classifier.1.weight"] for state in states]
    assert heads[0].shape == (5, 512, 1, 1)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert 0.005 < float(heads[0].std()) < 0.02  # SqueezeNet draws its last layer from N(0, 0.01)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("googlenet", {}),  # torchvision turns transform_input on from a file only
        ("mobilenet_v2", {"preprocess": "IMAGENET1K_V1"}),  # not the default preset
        ("factorised3d", {"clip_sampling": "frames=8"}),
    ],
)
def test_a_saved_network_comes_back_with_its_outputs_classes_and_preprocessing(
    tmp_path: Path, name: str, settings: dict[str, str]
) -> None:
    resolved = model(name, **settings)
    found = trainee(resolved, "all", num_classes=3)
    with torch.no_grad():
        for parameter in found.network.parameters():
            parameter.add_(0.01 * torch.rand_like(parameter))
    metadata = WeightsMetadata(name, ("c", "a", "b"), preset_enum(resolved))
    (tmp_path / "w.safetensors").write_bytes(as_safetensors(found, metadata))
    sampling = {k: v for k, v in settings.items() if k != "preprocess"}
    again = model(name, weights=str(tmp_path / "w.safetensors"), layer="logits", **sampling)
    assert again.categories == ("c", "a", "b")
    assert again.num_classes == 3
    assert again.input == resolved.input
    x = torch.rand(2, *probe.input_shape(resolved.input, resolved.frames))
    with torch.inference_mode():
        assert torch.equal(build(again, payload(again, OPTIONS))(x)[0], found.output(x))


@pytest.mark.parametrize(("lost", "new"), [("features.0.bias", "features.0.bia"), ("features.0.bias", None)])
def test_a_payload_of_another_network_is_seen(lost: str, new: str | None) -> None:
    resolved = model("squeezenet1_1")
    tensors = safetensors.torch.load(payload(resolved, OPTIONS))
    taken = tensors.pop(lost)
    other = safetensors.torch.save(tensors | ({new: taken} if new else {}))
    with pytest.raises(RuntimeError, match=r"the payload is not of squeezenet1_1: features.0.bias"):
        start(resolved, other, plan_for(resolved, "all", trains_last=True), num_classes=3, seed=0)
