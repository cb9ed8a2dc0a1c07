"""Clipping, quantising, stacking and inflation against tables worked out by hand."""

import numpy as np
import pytest
import torch

from featlib.arrays import Flow, Stretches
from featlib.flow.inflation import inflated_first_conv
from featlib.inference.inputs import FlowClips, Normalisation, flow_values
from featlib.spec import FlowInput, InputSpec, PixelSpec
from tests.flow.plain_stack import quantised, stacked

# round(255 * (v + 20) / 40) = round(6.375 * (v + 20)). Flow at -16, -8, 0, 8 and 16 lies exactly halfway between
# two levels: there the even one is taken.
TABLE = [
    (-1000.0, 0),
    (-20.5, 0),
    (-20.0, 0),
    (-19.93, 0),  # 0.446
    (-19.9, 1),  # 0.6375
    (-16.0, 26),  # 25.5
    (-10.0, 64),  # 63.75
    (-8.0, 76),  # 76.5: rounding halves up, or away from zero, would give 77
    (-1.0, 121),  # 121.125
    (-0.01, 127),  # 127.43625
    (0.0, 128),  # 127.5: cutting off would give 127
    (0.01, 128),  # 127.56375
    (1.0, 134),  # 133.875
    (8.0, 178),  # 178.5: rounding halves up would give 179
    (10.0, 191),  # 191.25
    (16.0, 230),  # 229.5
    (19.9, 254),  # 254.3625
    (19.93, 255),  # 254.55375
    (20.0, 255),
    (20.5, 255),
    (1000.0, 255),
]


def _levels(values: np.ndarray, bound: float = 20.0) -> np.ndarray:
    """What a network reads of flow, as levels of 0 to 255."""
    reads = FlowInput(with_rgb=True, bound=bound, quantised=True, mean=0.0, std=1.0)
    return (flow_values(torch.from_numpy(values), reads) * 255).numpy()


@pytest.mark.parametrize(("value", "level"), TABLE)
def test_quantised(value: float, level: int) -> None:
    values = np.full((2, 3, 2), value, np.float32)
    assert _levels(values) == pytest.approx(level, abs=1e-4)
    assert (quantised(values) == level).all()


def test_quantised_equals_numpy_everywhere() -> None:
    values = np.random.default_rng(0).normal(0, 12, 20_000).astype(np.float32)
    assert np.array_equal(_levels(values).round().astype(np.uint8), quantised(values))
    small = np.array([-3, -2, -1, 0, 1, 2, 3], np.float32)
    assert _levels(small, bound=2).round().tolist() == [0, 0, 64, 128, 191, 255, 255]


def test_flow_that_is_not_quantised_is_clipped_and_scaled() -> None:
    flow = torch.tensor([-1000.0, -20, -5, 0, 0.01, 10, 20.5])
    got = flow_values(flow, FlowInput(with_rgb=False))
    torch.testing.assert_close(got, torch.tensor([-1, -1, -0.25, 0, 0.0005, 0.5, 1]), atol=1e-6, rtol=0)
    assert flow[0] == -1000


def test_a_stack_is_the_middle_frame_and_x_and_y_of_each_field_in_turn() -> None:
    random = np.random.default_rng(1)
    frames = random.integers(0, 256, (4, 6, 9, 3), np.uint8)
    flow = Flow(np.array([[0, 1], [1, 2], [2, 3]]), random.normal(0, 9, (3, 4, 5, 2)).astype(np.float32))
    reads = InputSpec("clip", PixelSpec((6,), None), (0.0,) * 3, (1.0,) * 3, flow_crop=(4, 5),
                      flow=FlowInput(with_rgb=True, quantised=True, mean=0.0, std=1.0))  # fmt: skip
    device = torch.device("cpu")
    index = np.array([[0, 1, 2], [1, 2, 3]])
    clips = FlowClips(Stretches((frames,)), index, flow, reads, Normalisation(reads, device), device)
    got = (clips.batch(np.array([0, 1, 1])) * 255).numpy()
    for row, (middle, first) in enumerate([(1, 0), (2, 1), (2, 1)]):
        assert np.array_equal(got[row, :3].round().transpose(1, 2, 0), frames[middle, 1:5, 2:7])
        assert np.array_equal(got[row, 3:].round(), stacked(quantised(flow.values[first : first + 2])))
    assert clips.errors == {}
    lacking = Flow(flow.pairs[:1], flow.values[:1], "no such")
    broken = FlowClips(Stretches((frames,)), index, lacking, reads, Normalisation(reads, device), device)
    assert list(broken.errors) == [0, 1]
    assert "no such" in broken.errors[0]


def test_first_convolution_answers_equal_flow_channels_like_the_mean_colour() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 3, 7, 7)
    wide = inflated_first_conv(weight, 20)
    assert wide.shape == (8, 20, 7, 7)
    assert wide.dtype == torch.float32
    for channel in range(20):
        assert torch.allclose(wide[:, channel], (weight[:, 0] + weight[:, 1] + weight[:, 2]) / 3, atol=1e-6)
    assert inflated_first_conv(torch.randn(8, 3, 3, 3, 3), 2).shape == (8, 2, 3, 3, 3)
    wide[0, 0] = 0
    assert wide[0, 1].abs().sum() > 0


def test_inflation_refuses_networks_that_do_not_read_rgb() -> None:
    with pytest.raises(ValueError, match=r"\(8, 1, 7, 7\) does not read RGB"):
        inflated_first_conv(torch.zeros(8, 1, 7, 7), 20)
    with pytest.raises(ValueError, match="must be at least 1"):
        inflated_first_conv(torch.zeros(8, 3, 7, 7), 0)
