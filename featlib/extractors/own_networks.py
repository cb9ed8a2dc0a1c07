"""Video networks that torchvision lacks, with the preprocessing of their papers and the keys of public weights."""

from collections.abc import Iterable
from fractions import Fraction

from featlib.extractors.network import Network, Pretrained
from featlib.extractors.registry import register_family
from featlib.models.c3d import C3D
from featlib.models.factorised3d import Factorised3D
from featlib.models.i3d import I3D
from featlib.sampling import ClipSampling
from featlib.spec import InputSpec, PixelSpec

_SOURCE = "featlib"

# Public PyTorch weights of C3D come as one list of layers and one of hidden layers, or by the names of the paper.
_C3D_NAMES = {
    "features": {0: "conv1", 3: "conv2", 6: "conv3a", 8: "conv3b", 11: "conv4a", 13: "conv4b", 16: "conv5a"}
    | {18: "conv5b"},
    "classifier": {0: "fc6", 3: "fc7", 6: "fc8"},
}
_C3D_RENAMES = tuple(
    (rf"^{parent}\.{number}\.", f"{name}.") for parent, names in _C3D_NAMES.items() for number, name in names.items()
)

# Frames of 128 x 171 in 0..255, the mean of Sports-1M taken off, in BGR as Caffe reads pictures. This is the mean of
# each channel; the published file holds one of each pixel.
_C3D_INPUT = InputSpec(
    "clip",
    PixelSpec(resize=(128, 171), crop=(112, 112), antialias=False),
    mean=(90 / 255, 98 / 255, 102 / 255),
    std=(1 / 255, 1 / 255, 1 / 255),
    order="bgr",
)
_I3D_INPUT = InputSpec(
    "clip",
    PixelSpec(resize=(256,), crop=(224, 224), antialias=False),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
_PLAIN_INPUT = InputSpec(
    "clip",
    PixelSpec(resize=(128, 171), crop=(112, 112), antialias=False),
    mean=(0.43216, 0.394666, 0.37645),
    std=(0.22803, 0.22145, 0.216989),
)


def _preset(enum: str, name: str, reads: InputSpec) -> Pretrained:
    return Pretrained(name, f"{enum}.{name}", "", reads)


@register_family
def own_networks() -> Iterable[Network]:
    """C3D, I3D and a small factorised network."""
    return [
        Network(
            name="c3d",
            family="c3d",
            source=_SOURCE,
            kind="clip",
            sampling=ClipSampling(frames=16),
            pretrained=(_preset("C3D_Weights", "SPORTS1M", _C3D_INPUT),),
            default="SPORTS1M",
            constructor=C3D,
            renames=_C3D_RENAMES,
            exact_frames=16,
            layer="relu6",
            optional=("fc7.", "fc8."),
        ),
        Network(
            name="i3d_rgb",
            family="i3d",
            source=_SOURCE,
            kind="clip",
            sampling=ClipSampling(frames=64, fps=Fraction(25)),
            pretrained=(_preset("I3D_Weights", "KINETICS400_RGB", _I3D_INPUT),),
            default="KINETICS400_RGB",
            constructor=I3D,
        ),
        Network(
            name="factorised3d",
            family="factorised3d",
            source=_SOURCE,
            kind="clip",
            sampling=ClipSampling(frames=16),
            pretrained=(_preset("Factorised3D_Weights", "UNTRAINED", _PLAIN_INPUT),),
            default="UNTRAINED",
            constructor=Factorised3D,
        ),
    ]
