"""C3D: eight 3x3x3 convolutions and two hidden layers (Tran et al., "Learning Spatiotemporal Features with 3D
Convolutional Networks", ICCV 2015)."""

from torch import Tensor, nn


def _convolution(channels: int, planes: int) -> nn.Conv3d:
    return nn.Conv3d(channels, planes, kernel_size=3, padding=1)


class C3D(nn.Module):
    """Clips (N, 3, 16, 112, 112) to class scores (N, num_classes).

    The submodules bear the names of the layers in the published network definition. ``pool5`` rounds up, as Caffe
    does: 7 x 7 becomes 4 x 4 whose last row and column see one row and column of input. Padding on both sides gives
    the same shape and other values.
    """

    def __init__(self, num_classes: int = 487) -> None:
        super().__init__()
        self.conv1 = _convolution(3, 64)
        self.pool1 = nn.MaxPool3d((1, 2, 2))
        self.conv2 = _convolution(64, 128)
        self.pool2 = nn.MaxPool3d(2)
        self.conv3a = _convolution(128, 256)
        self.conv3b = _convolution(256, 256)
        self.pool3 = nn.MaxPool3d(2)
        self.conv4a = _convolution(256, 512)
        self.conv4b = _convolution(512, 512)
        self.pool4 = nn.MaxPool3d(2)
        self.conv5a = _convolution(512, 512)
        self.conv5b = _convolution(512, 512)
        self.pool5 = nn.MaxPool3d(2, ceil_mode=True)
        self.fc6 = nn.Linear(512 * 4 * 4, 4096)
        self.relu6 = nn.ReLU()
        self.drop6 = nn.Dropout(0.5)
        self.fc7 = nn.Linear(4096, 4096)
        self.relu7 = nn.ReLU()
        self.drop7 = nn.Dropout(0.5)
        self.fc8 = nn.Linear(4096, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.conv1(x).relu())
        x = self.pool2(self.conv2(x).relu())
        x = self.pool3(self.conv3b(self.conv3a(x).relu()).relu())
        x = self.pool4(self.conv4b(self.conv4a(x).relu()).relu())
        x = self.pool5(self.conv5b(self.conv5a(x).relu()).relu()).flatten(1)
        x = self.drop6(self.relu6(self.fc6(x)))
        x = self.drop7(self.relu7(self.fc7(x)))
        scores: Tensor = self.fc8(x)
        return scores
