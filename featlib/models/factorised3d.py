"""A small 3D network whose convolutions are factorised into space and time (after Sun et al., "Human Action
Recognition using Factorized Spatio-Temporal Convolutional Networks", ICCV 2015)."""

from torch import Tensor, nn

_WIDTHS = (32, 64, 128, 256)


def _layer(channels: int, planes: int, kernel: tuple[int, int, int]) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    convolution = nn.Conv3d(channels, planes, kernel, padding=padding, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm3d(planes), nn.ReLU())


class Factorised3D(nn.Module):
    """Clips (N, 3, T, H, W) to class scores (N, num_classes).

    One full 3x3x3 layer sees motion in the pixels themselves; from there on a 1x3x3 layer looks at space and a 3x1x1
    layer at time, in turn. Space is halved after each of the four stages, time after the last three, so a clip has
    at least 8 frames.
    """

    def __init__(self, num_classes: int = 400) -> None:
        super().__init__()
        first, *wider = _WIDTHS
        self.stem = _layer(3, first, (3, 3, 3))
        self.pool = nn.MaxPool3d((1, 2, 2))
        self.stages = nn.Sequential(*(_stage(a, b) for a, b in zip(_WIDTHS, wider, strict=False)))
        self.average = nn.AdaptiveAvgPool3d(1)
        self.fc = nn.Linear(_WIDTHS[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.average(self.stages(self.pool(self.stem(x))))
        scores: Tensor = self.fc(x.flatten(1))
        return scores


def _stage(channels: int, planes: int) -> nn.Sequential:
    space, time = _layer(channels, planes, (1, 3, 3)), _layer(planes, planes, (3, 1, 1))
    return nn.Sequential(space, time, nn.MaxPool3d(2))
