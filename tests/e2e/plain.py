"""The plain way to the same features: PyAV, torchvision's preset, the network, a batch of one. No featlib here."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
from torchvision.transforms._presets import ImageClassification, VideoClassification

IMAGE = ImageClassification(crop_size=224)
VIDEO = VideoClassification(
    crop_size=(112, 112),
    resize_size=(128, 171),
    mean=(0.43216, 0.394666, 0.37645),
    std=(0.22803, 0.22145, 0.216989),
)


def frames(path: Path) -> tuple[list[tuple[float, np.ndarray]], float]:
    """Every frame until decoding breaks off, and when the last one ends.

    Returns:
        (presentation time in seconds, upright uint8 RGB (H, W, 3)) of each frame; end in seconds.
    """
    found, end = [], 0.0
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        rate, avi = stream.average_rate, container.format.name == "avi"
        try:
            for i, frame in enumerate(container.decode(stream)):
                rgb = frame.to_ndarray(format="rgb24")
                turns = round(frame.rotation / 90) % 4
                time = float(i / rate) if avi else float(frame.pts * stream.time_base)
                end = time + (
                    float(frame.duration * stream.time_base) if frame.duration and not avi else float(1 / rate)
                )
                found.append((time, np.ascontiguousarray(np.rot90(rgb, turns))))
        except av.FFmpegError:
            pass
    return found, end


def shown_each_second(times: list[float], end: float) -> list[int]:
    """Frame shown at first + 0 s, 1 s, 2 s … while the video lasts."""
    picked, second = [], 0
    while times[0] + second < end - 1e-6:
        picked.append(max(i for i, t in enumerate(times) if t <= times[0] + second + 1e-6))
        second += 1
    return picked


def windows(count: int, size: int, hop: int) -> Iterator[list[int]]:
    """Frames of each whole clip, ``hop`` frames apart; of one padded clip when the video is shorter than that."""
    if count < size:
        yield [min(i, count - 1) for i in range(size)]
    for start in range(0, count - size + 1, hop):
        yield list(range(start, start + size))


def squeezenet(network: torch.nn.Module, rgb: np.ndarray, preset: ImageClassification = IMAGE) -> np.ndarray:
    """(512,) mean over space of what the last convolution of SqueezeNet reads."""
    x = preset(torch.from_numpy(rgb).permute(2, 0, 1)).unsqueeze(0)
    with torch.inference_mode():
        return network.features(x).mean(dim=(2, 3))[0].numpy()


def r3d(network: torch.nn.Module, clip: list[np.ndarray], preset: VideoClassification = VIDEO) -> np.ndarray:
    """(512,) what the last linear layer of r3d_18 reads."""
    x = preset(torch.stack([torch.from_numpy(f).permute(2, 0, 1) for f in clip])).unsqueeze(0)
    with torch.inference_mode():
        x = network.layer4(network.layer3(network.layer2(network.layer1(network.stem(x)))))
        return network.avgpool(x).flatten(1)[0].numpy()


def relative_l2(a: np.ndarray, b: np.ndarray) -> float:
    """|a - b| / |b|."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
