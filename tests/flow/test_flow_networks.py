"""Two streams and I3D of flow: the whole way from frames to features, against the same steps written out."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18

from featlib.arrays import Flow, Stretches
from featlib.config import ModelConfig
from featlib.errors import ConfigError
from featlib.extractors import registry
from featlib.extractors.resolve import ResolvedModel, resolve
from featlib.extractors.weights import payload
from featlib.flow.build import open_estimator
from featlib.flow_worker import FlowPoolSpec, FlowWorker, computed, neighbours
from featlib.inference import Engine
from featlib.items import ItemReport
from featlib.spec import Clip, Decoded, MediaFacts, Segment
from featlib.storage import StoreOptions
from featlib.unit import UnitBuilder, flow_of, json_column
from tests.flow.plain_stack import clipped, quantised, stacked
from tests.flow.textures import moving

OPTIONS = StoreOptions()
SIZE = (256, 340)


def two_stream(**settings: object) -> ResolvedModel:
    values = {"network": "two_stream_resnet18", "weights": "random:0", "flow": "dis", **settings}
    return resolve(ModelConfig.model_validate(values), OPTIONS)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return moving(*[(2.0 * i, -1.5 * i) for i in range(12)], height=SIZE[0], width=SIZE[1])


@pytest.fixture(scope="module")
def flow(frames: np.ndarray) -> Flow:
    pairs = neighbours([np.arange(11)[None], np.arange(1, 12)[None]])
    return computed(Stretches((frames,)), pairs, (224, 224), open_estimator("dis"))


def cropped(values: np.ndarray) -> np.ndarray:
    """The centre of (n, 256, 340, c)."""
    return values[:, 16:240, 58:282]


def plain_streams(frames: np.ndarray, middle: int = 5, levels: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """The input of both streams for frames 0 to 10, with OpenCV and numpy alone."""
    preset = ResNet18_Weights.DEFAULT.transforms()
    rgb = torch.from_numpy(cropped(frames[middle : middle + 1]).transpose(0, 3, 1, 2) / 255).float()
    mean, std = (torch.tensor(v)[:, None, None] for v in (preset.mean, preset.std))
    fields = np.stack([open_estimator("dis").flows(frames, np.array([[i, i + 1]]))[0] for i in range(10)])
    fields = cropped(fields)
    shares = quantised(fields) / 255 if levels else (clipped(fields) + 20) / 40
    return (rgb - mean) / std, (torch.from_numpy(stacked(shares)).float()[None] - 0.5) / (sum(preset.std) / 3)


@pytest.fixture(scope="module")
def streams() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Two torchvision networks, the second with a first convolution for flow in which no channels are alike."""
    torch.manual_seed(0)
    spatial, temporal = resnet18(), resnet18()
    temporal.conv1 = torch.nn.Conv2d(20, 64, 7, 2, 3, bias=False)
    return spatial.eval(), temporal.eval()


@pytest.fixture(scope="module")
def weights(streams: tuple[torch.nn.Module, torch.nn.Module], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "two.pth"
    named = zip(("spatial", "temporal"), streams, strict=True)
    torch.save({f"{name}.{k}": v for name, network in named for k, v in network.state_dict().items()}, path)
    return str(path)


def plain_features(
    streams: tuple[torch.nn.Module, torch.nn.Module], rgb: torch.Tensor, stack: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What both networks give before their last layers."""
    with torch.inference_mode():
        spatial, temporal = (torch.nn.Sequential(*list(n.children())[:-1], torch.nn.Flatten()) for n in streams)
        return spatial(rgb)[0], temporal(stack)[0]


def relative_l2(value: np.ndarray, reference: torch.Tensor) -> float:
    expected = reference.double().numpy()
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("fusion", "shares"), [("concat", None), ("mean", (0.5, 0.5)), ("1:1.5", (0.4, 0.6))])
def test_two_streams_equal_two_networks(
    fusion: str,
    shares: tuple[float, float] | None,
    frames: np.ndarray,
    flow: Flow,
    streams: tuple[torch.nn.Module, torch.nn.Module],
    weights: str,
) -> None:
    model = two_stream(fusion=fusion, weights=weights)
    (extracted,) = Engine([model], payload(model, OPTIONS)).run(frames, np.arange(11)[None], flow)
    assert extracted.errors == {}
    a, b = plain_features(streams, *plain_streams(frames))
    expected = torch.cat([a, b]) if shares is None else a * shares[0] + b * shares[1]
    assert extracted.shape == ((1024,) if shares is None else (512,))
    assert relative_l2(extracted.features[0], expected) < 1e-5


def test_wrong_stacks_are_seen(
    frames: np.ndarray, flow: Flow, streams: tuple[torch.nn.Module, torch.nn.Module], weights: str
) -> None:
    model = two_stream(weights=weights)
    (extracted,) = Engine([model], payload(model, OPTIONS)).run(frames, np.arange(11)[None], flow)
    rgb, stack = plain_streams(frames)
    wrong = {
        "the first frame": (plain_streams(frames, middle=0)[0], stack),
        "not in 256 levels": (rgb, plain_streams(frames, levels=False)[1]),
        "y before x": (rgb, torch.stack([stack[:, 1::2], stack[:, 0::2]], dim=2).flatten(1, 2)),
        "all x before all y": (rgb, torch.cat([stack[:, 0::2], stack[:, 1::2]], dim=1)),
        "backward in time": (rgb, -stack),
    }
    for what, inputs in wrong.items():
        assert relative_l2(extracted.features[0], torch.cat(plain_features(streams, *inputs))) > 1e-4, what


def test_a_clip_beside_another_one_is_the_same(frames: np.ndarray, flow: Flow) -> None:
    model = two_stream()
    engine = Engine([model], payload(model, OPTIONS), batch_size=2)
    both = engine.run(frames, np.stack([np.arange(11), np.arange(1, 12)]), flow)[0].features
    alone = engine.run(frames, np.arange(1, 12)[None], flow)[0].features
    assert np.linalg.norm(both[1] - alone[0]) / np.linalg.norm(alone[0]) < 1e-5
    assert np.linalg.norm(both[0] - both[1]) / np.linalg.norm(both[1]) > 1e-4


def test_weights_of_the_image_network_serve_both_streams(tmp_path: Path) -> None:
    image = resnet18(num_classes=7)
    path = tmp_path / "image.pth"
    torch.save({"state_dict": OrderedDict((f"module.{k}", v) for k, v in image.state_dict().items())}, path)
    model = two_stream(weights=str(path))
    assert model.num_classes == 7
    module = registry.network("two_stream_resnet18").constructor(num_classes=7)
    state = {f"{s}.{k}": v for s in ("spatial", "temporal") for k, v in image.state_dict().items()}
    state["temporal.conv1.weight"] = image.conv1.weight.mean(1, keepdim=True).expand(-1, 20, -1, -1)
    torch.save(state, tmp_path / "both.pth")
    both = two_stream(weights=str(tmp_path / "both.pth"))
    assert payload(model, OPTIONS) == payload(both, OPTIONS)
    assert module.temporal.conv1.weight.shape == (64, 20, 7, 7)
    torch.save({"conv1.weight": torch.zeros(64, 20, 7, 7)}, tmp_path / "stream.pth")
    with pytest.raises(ConfigError, match="do not fit two_stream_resnet18: a first convolution of"):
        two_stream(weights=str(tmp_path / "stream.pth"))
    torch.save({f"temporal.{k}": v for k, v in image.state_dict().items()}, tmp_path / "half.pth")
    with pytest.raises(ConfigError, match=r"do not fit two_stream_resnet18: other shape temporal\.conv1\.weight"):
        two_stream(weights=str(tmp_path / "half.pth"))


def test_i3d_of_flow_reads_one_flow_less_than_frames(frames: np.ndarray, flow: Flow) -> None:
    described = registry.describe("i3d_flow")
    assert round(described.parameters / 1e6, 2) == 12.68  # Carreira and Zisserman's checkpoint of flow
    stack = registry.describe("two_stream_resnet18").input.pixels
    assert described.input.pixels == stack, "so that one computation of flow serves both"
    assert (described.sampling, described.feature_shape) == ("frames=65,stride=1,hop=64,tail=drop,fps=25", (1024,))
    values = {"network": "i3d_flow", "weights": "random:1", "flow": "dis", "clip_sampling": "frames=11"}
    model = resolve(ModelConfig.model_validate(values), OPTIONS)
    assert str(model.sampling) == "frames=11,stride=1,hop=10,tail=drop,fps=25"
    engine = Engine([model], payload(model, OPTIONS))
    # Frames are not needed any more: the flow pool has dropped them.
    (extracted,) = engine.run(Stretches(()), np.arange(11)[None], flow)
    torch.manual_seed(1)
    network = registry.network("i3d_flow").constructor().eval()
    fields = cropped(np.stack([open_estimator("dis").flows(frames, np.array([[i, i + 1]]))[0] for i in range(10)]))
    x = torch.from_numpy(clipped(fields) / 20).permute(3, 0, 1, 2)[None].float()
    kept: list[torch.Tensor] = []
    network.time.register_forward_hook(lambda _m, _a, out: kept.append(out))
    with torch.inference_mode():
        network(x)
    assert relative_l2(extracted.features[0], kept[0][0].mean(0)) < 1e-5


class _Counting:
    """An estimator that counts its pairs."""

    def __init__(self) -> None:
        self.pairs: list[tuple[int, int]] = []

    def flows(self, frames: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        self.pairs += [tuple(p) for p in pairs.tolist()]
        if frames.shape[1] == 4:
            raise ValueError("frames of 4 rows cannot be had")
        return np.broadcast_to(pairs[:, :1, None, None], (len(pairs), *frames.shape[1:3], 2)).astype(np.float32)


def test_models_share_one_computation_and_broken_frames_cost_their_clips_alone() -> None:
    first, second = two_stream(label="a"), two_stream(label="b", layer="logits")
    kind = first.input.flow_spec
    assert kind is not None
    assert kind == second.input.flow_spec
    worker = FlowWorker(FlowPoolSpec({kind: ("a", "b")}, "cpu", 1, ()), {kind: b""})
    counting = _Counting()
    worker._estimators[kind] = counting  # type: ignore[assignment]
    builder = UnitBuilder(0, 0, {"a": kind.pixels.key, "b": kind.pixels.key})
    for height in (250, 4):
        clip = Clip(0, 0.0, 1.0, (), 0, (0, 1, 2, 2))
        pixels = {kind.pixels.key: np.zeros((3, height, 300, 3), np.uint8)}
        decoded = Decoded(Segment(0, 1), "ok", MediaFacts(), frames=pixels, clips={"a": (clip,), "b": (clip,)})
        builder.add(report_of(height), decoded)
    flow = flow_of(worker(builder.row([], {})), kind.key)
    assert counting.pairs[:3] == [(0, 1), (1, 2), (2, 2)]
    assert len(counting.pairs) == 3 + 3 + 3  # the broken ones once more each, alone
    assert flow.pairs.tolist() == [[0, 1], [1, 2], [2, 2]]
    assert flow.values.shape == (3, 224, 224, 2)
    assert "4 rows" in flow.missing


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), False),
        (MemoryError("full"), False),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), True),
    ],
)
def test_no_pair_is_blamed_for_lack_of_memory_or_a_lost_device(
    error: Exception, is_lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(BaseException):
        pass

    class Failing:
        def flows(self, frames: np.ndarray, pairs: np.ndarray) -> np.ndarray:
            raise error

    def ended(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr("featlib.faults.os._exit", ended)
    kind = two_stream(label="a").input.flow_spec
    assert kind is not None
    worker = FlowWorker(FlowPoolSpec({kind: ("a",)}, "cpu", 1, ()), {kind: b""})
    worker._estimators[kind] = Failing()  # type: ignore[assignment]
    builder = UnitBuilder(0, 0, {"a": kind.pixels.key})
    pixels = {kind.pixels.key: np.zeros((3, 250, 300, 3), np.uint8)}
    clips = {"a": (Clip(0, 0.0, 1.0, (), 0, (0, 1, 2, 2)),)}
    builder.add(report_of(250), Decoded(Segment(0, 1), "ok", MediaFacts(), frames=pixels, clips=clips))
    if is_lost:
        with pytest.raises(Ended):
            worker(builder.row([], {}))
    else:
        stats = json_column(worker(builder.row([], {})), "stats")
        assert f"--flow dis: the device has too little memory ({error})" in stats["fatal"]


def report_of(height: int) -> ItemReport:
    return ItemReport(f"v{height}", "/v", Segment(0, 1), MediaFacts(), 1, 0.0, {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "resnet18", "flow": "dis"}, "--flow resnet18=dis: resnet18 reads no optical flow"),
        ({"network": "two_stream_resnet18", "flow": "brox"}, "brox.*tvl1"),
        ({"network": "two_stream_resnet18", "flow": "dis", "flow_weights": "random:0"}, "dis is no network"),
        ({"network": "resnet18", "flow_weights_sha256": "0" * 64}, "--flow-weights-sha256 resnet18=0.*no optical flow"),
        (
            {"network": "two_stream_resnet18", "flow": "dis", "flow_weights_sha256": "0" * 64},
            "--flow-weights-sha256 0.*dis is no network",
        ),
        ({"network": "two_stream_resnet18", "fusion": "sum"}, "'sum' must be concat, mean, or two weights like 1:1.5"),
        ({"network": "i3d_rgb", "fusion": "mean"}, "i3d_rgb has one stream"),
        ({"network": "two_stream_resnet18", "clip_sampling": "frames=5", "flow": "dis"}, "takes exactly 11"),
        ({"network": "i3d_flow", "clip_sampling": "frames=9", "flow": "dis"}, "needs at least 10"),
    ],
)
def test_refusals(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        resolve(ModelConfig.model_validate({"weights": "random:0", **settings}), OPTIONS)
    assert "\n" not in str(refused.value)
