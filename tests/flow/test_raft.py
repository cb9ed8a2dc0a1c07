"""RAFT against plain torchvision with the same weights, padded by numpy."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from torchvision.models.optical_flow import Raft_Small_Weights, raft_large, raft_small

from featlib.flow.raft import RaftFlow, raft_padding
from featlib.flow.weights import load_flow_weights
from featlib.storage import StoreOptions
from tests.flow.textures import UInt8, moving

PLAIN = {"raft_large": raft_large, "raft_small": raft_small}
PAYLOADS = {name: load_flow_weights(name, "random:3", StoreOptions()).payload for name in PLAIN}
ONE_PAIR = np.array([[0, 1]])
NO_PADDING = ((0, 0), (0, 0))

Flow = npt.NDArray[np.float32]
Pads = tuple[tuple[int, int], tuple[int, int]]  # top and bottom, left and right


def plain_module(name: str) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module: torch.nn.Module = PLAIN[name](weights=None)
    return module.eval()


def plain(module: torch.nn.Module, first: UInt8, second: UInt8, pads: Pads, **arguments: Any) -> list[Flow]:
    """All of torchvision's predictions, cut back, each (num_pairs, height, width, 2)."""
    (top, _), (left, _) = pads
    height, width = first.shape[1:3]
    images = [np.pad(f, ((0, 0), *pads, (0, 0)), mode="edge") for f in (first, second)]
    tensors = [torch.from_numpy(i).permute(0, 3, 1, 2) for i in images]
    with torch.no_grad():
        predictions = module(*Raft_Small_Weights.C_T_V2.transforms()(*tensors), **arguments)
    inside = (p[:, :, top : top + height, left : left + width] for p in predictions)
    return [p.permute(0, 2, 3, 1).numpy() for p in inside]


def relative_l2(a: Flow, b: Flow) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize(
    ("height", "width", "pads"),
    [
        (128, 136, NO_PADDING),
        (101, 130, ((13, 14), (3, 3))),  # up to 128 x 136
        (144, 135, ((0, 0), (0, 1))),
    ],
)
@pytest.mark.parametrize("name", PLAIN)
def test_equals_torchvision(name: str, height: int, width: int, pads: Pads) -> None:
    frames = moving((0, 0), (3, -2), height=height, width=width)
    flow = RaftFlow(name, PAYLOADS[name], batch_pixels=1).flows(frames, ONE_PAIR)
    predictions = plain(plain_module(name), frames[:1], frames[1:], pads)
    assert len(predictions) == 12
    assert flow.shape == (1, height, width, 2)
    assert flow.dtype == np.float32
    assert np.array_equal(flow, predictions[-1])
    assert relative_l2(flow, predictions[0]) > 0.01
    assert relative_l2(flow, predictions[-2]) > 0.001


def test_wrong_variants_differ() -> None:
    """What the equality above would not forgive: other padding, range, order of frames, of colours, train mode."""
    module = plain_module("raft_large")
    frames = moving((0, 0), (3, -2), height=101, width=130)
    flow = RaftFlow("raft_large", PAYLOADS["raft_large"]).flows(frames, ONE_PAIR)
    first, second, pads = frames[:1], frames[1:], ((13, 14), (3, 3))
    wrong = {
        "behind": plain(module, first, second, ((0, 27), (0, 6))),
        "odd pixel before": plain(module, first, second, ((14, 13), (3, 3))),
        "zeros": plain(module, *(np.pad(f, ((0, 0), *pads, (0, 0))) for f in (first, second)), NO_PADDING),
        "backward": plain(module, second, first, pads),
        "bgr": plain(module, first[..., ::-1], second[..., ::-1], pads),
        "fewer updates": plain(module, first, second, pads, num_flow_updates=11),
        "train mode": plain(module.train(), first, second, pads),
    }
    wrong["zeros"] = [p[:, 13 : 13 + 101, 3 : 3 + 130] for p in wrong["zeros"]]
    for variant, predictions in wrong.items():
        assert relative_l2(flow, predictions[-1]) > 1e-3, variant


@pytest.mark.parametrize("name", PLAIN)
def test_a_pair_alone_equals_it_in_a_batch(name: str) -> None:
    frames = moving((0, 0), (3, -2), (1.5, 0.5), (-2, 1), height=120, width=128)
    pairs = np.array([[0, 1], [1, 1], [1, 2], [2, 3]])
    estimator = RaftFlow(name, PAYLOADS[name], batch_pixels=2 * 128 * 128)
    together = estimator.flows(frames, pairs)
    for row in (0, 2, 3):
        alone = estimator.flows(frames, pairs[row : row + 1])[0]
        assert relative_l2(alone, together[row]) <= 1e-5
    batch = plain(plain_module(name), frames[[0, 1]], frames[[1, 2]], ((4, 4), (0, 0)))[-1]
    assert np.array_equal(together[[0, 2]], batch)


def test_batches_have_one_shape_and_a_bounded_number_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = moving((0, 0), (1, 0), (2, 0), height=120, width=130)
    estimator = RaftFlow("raft_small", PAYLOADS["raft_small"], batch_pixels=2 * 128 * 136 + 5)
    shapes: list[tuple[int, ...]] = []
    hook = estimator._module.register_forward_pre_hook(lambda _, images: shapes.append(tuple(images[0].shape)))
    estimator.flows(frames, np.array([[0, 1], [1, 2], [0, 2]]))
    hook.remove()
    assert shapes == [(2, 3, 128, 136), (2, 3, 128, 136)]


@pytest.mark.parametrize("name", PLAIN)
def test_a_frame_with_itself_is_exactly_still_although_the_network_says_otherwise(name: str) -> None:
    frames = moving((0, 0), height=128, width=128)
    still = RaftFlow(name, PAYLOADS[name]).flows(frames, np.array([[0, 0], [0, 0]]))
    assert still.shape == (2, 128, 128, 2)
    assert not still.any()
    assert np.abs(plain(plain_module(name), frames, frames, NO_PADDING)[-1]).max() > 0.01


@pytest.mark.parametrize(
    ("height", "width", "padding"),
    [
        (128, 128, (0, 0, 0, 0)),
        (240, 320, (0, 0, 0, 0)),
        (256, 341, (1, 2, 0, 0)),
        (129, 135, (0, 1, 3, 4)),
        (16, 127, (0, 1, 56, 56)),
        (1, 1, (63, 64, 63, 64)),
    ],
)
def test_padding(height: int, width: int, padding: tuple[int, int, int, int]) -> None:
    assert raft_padding(height, width) == padding


def test_read_only_frames_and_threads() -> None:
    frames = moving((0, 0), (1, 0), height=128, width=128)
    frames.flags.writeable = False
    before = torch.get_num_threads()
    try:
        estimator = RaftFlow("raft_small", PAYLOADS["raft_small"], threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert estimator.flows(frames, ONE_PAIR).any()


def test_values_that_are_not_finite_are_refused() -> None:
    estimator = RaftFlow("raft_small", PAYLOADS["raft_small"])
    with torch.no_grad():
        next(estimator._module.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="raft_small gave NaN or infinite flow from frame 1 to 0"):
        estimator.flows(moving((0, 0), (1, 0), height=128, width=128), np.array([[1, 0]]))


def test_the_payload_of_the_other_network_is_refused() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        RaftFlow("raft_small", PAYLOADS["raft_large"])
    state = safetensors.torch.load(PAYLOADS["raft_small"])
    first = next(iter(state))
    with pytest.raises(RuntimeError, match=f"the payload is not of raft_small: {first}"):
        RaftFlow("raft_small", safetensors.torch.save({k: v for k, v in state.items() if k != first}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", PLAIN)
def test_cuda_gives_what_a_cpu_gives(name: str) -> None:
    frames = moving((0, 0), (3, -2), height=120, width=130)
    on_cpu = RaftFlow(name, PAYLOADS[name]).flows(frames, ONE_PAIR)
    on_cuda = RaftFlow(name, PAYLOADS[name], device="cuda").flows(frames, ONE_PAIR)
    assert relative_l2(on_cuda, on_cpu) < 1e-4  # in TF32 it would be about 1e-3
