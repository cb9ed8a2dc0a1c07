"""RAFT (Teed and Deng 2020) by torchvision, in batches of one fixed shape."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from featlib.extractors import probe, state_dict
from featlib.flow.estimate import FlowEstimator, Flows, Pairs, UInt8Frames
from featlib.flow.sources import RAFT_LEAST_SIDE, RAFT_SIDE_STEP, RAFT_UPDATES
from featlib.flow.weights import flow_network

# Pixels of first frames in one batch: one pair and 16 of 320 x 256. A CPU gains nothing from more; a batch that is
# not full costs as much as a full one. Memory goes with the square of a frame's pixels too: the correlations of all
# pairs of points take 5 bytes times (pixels / 64)^2, 9 MB at 320 x 256 and 6 GB at 1920 x 1088.
_BATCH_PIXELS = {"cpu": RAFT_LEAST_SIDE**2, "cuda": 16 * 320 * 256}

Padding = tuple[int, int, int, int]  # left, right, top, bottom


class RaftFlow(FlowEstimator):
    """RAFT on a device.

    Every batch has the same shape for frames of one size, the last one filled up by repeating its last pair: a
    pair's flow does not depend on how many others come with it.

    Args:
        name: ``raft_large`` or ``raft_small``.
        payload: Weights, from ``featlib.flow.weights``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads of this process; None leaves torch's own number.
        batch_pixels: Most pixels of first frames in a batch (one pair at least); None chooses by the device.

    Raises:
        RuntimeError: The payload is not of this network.
    """

    def __init__(
        self,
        name: str,
        payload: bytes,
        *,
        device: str = "cpu",
        threads: int | None = None,
        batch_pixels: int | None = None,
    ) -> None:
        super().__init__(name)
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = torch.device(device)
        self._batch_pixels = batch_pixels or _BATCH_PIXELS[self.device.type]
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False  # as _arithmetic for convolutions, for the correlation
        self._module = _network(name, payload).to(self.device)

    def _computed(self, frames: UInt8Frames, pairs: Pairs) -> Iterator[Flows]:
        height, width = frames.shape[1:3]
        left, right, top, bottom = padding = raft_padding(height, width)
        size = max(1, self._batch_pixels // ((left + width + right) * (top + height + bottom)))
        for start in range(0, len(pairs), size):
            real = pairs[start : start + size]
            filled = real[np.minimum(np.arange(size), len(real) - 1)]
            flow_n2hw = self._forward(frames[filled[:, 0]], frames[filled[:, 1]], padding)
            inside = flow_n2hw[: len(real), :, top : top + height, left : left + width]
            yield from inside.permute(0, 2, 3, 1).cpu().numpy()

    def _forward(self, first: UInt8Frames, second: UInt8Frames, padding: Padding) -> Tensor:
        with torch.inference_mode(), self._arithmetic():
            images = (self._image(first, padding), self._image(second, padding))
            flow: Tensor = self._module(*images, num_flow_updates=RAFT_UPDATES)[-1]
            return flow

    def _image(self, frames: UInt8Frames, padding: Padding) -> Tensor:
        """The same operations in the same order as torchvision's preset for flow, then the padding."""
        x = torch.from_numpy(frames).to(self.device).permute(0, 3, 1, 2)
        x = x.to(torch.float32, memory_format=torch.contiguous_format).div_(255).sub_(0.5).div_(0.5)
        return functional.pad(x, padding, mode="replicate")

    def _arithmetic(self) -> AbstractContextManager[object]:
        """fp32 means fp32: cuDNN would otherwise round the inputs of convolutions to 10 bits (TF32)."""
        if self.device.type != "cuda":
            return nullcontext()
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def raft_padding(height: int, width: int) -> Padding:
    """Left, right, top, bottom: up to sides that RAFT takes, the odd pixel behind, as in its own evaluation."""
    left, right = _around(width)
    top, bottom = _around(height)
    return left, right, top, bottom


def _around(side: int) -> tuple[int, int]:
    missing = max(RAFT_LEAST_SIDE, -(-side // RAFT_SIDE_STEP) * RAFT_SIDE_STEP) - side
    return missing // 2, missing - missing // 2


def _network(name: str, payload: bytes) -> nn.Module:
    module = probe.skeleton(flow_network(name), ())
    missing, unexpected = state_dict.assign(module, safetensors.torch.load(payload))
    if missing or unexpected:
        raise RuntimeError(f"the payload is not of {name}: {', '.join([*missing, *unexpected][:3])}")
    return module.eval().requires_grad_(False)
