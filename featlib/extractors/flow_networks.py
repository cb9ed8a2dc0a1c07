"""Networks that read optical flow: two streams of an image network, and I3D of flow."""

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from functools import partial

from featlib.extractors.light_torchvision import torchvision
from featlib.extractors.network import Network, Pretrained
from featlib.extractors.registry import register_family
from featlib.extractors.torchvision_networks import image_network
from featlib.models.i3d import I3D
from featlib.models.two_stream import TwoStream, two_stream_state
from featlib.sampling import ClipSampling
from featlib.spec import FlowInput, InputSpec, PixelSpec

_BACKBONES = ("alexnet", "resnet18", "resnet50", "resnet101", "vgg16")
_FLOWS = 10

# Flow of neighbouring frames at 25 a second with their short side at 256; clipped, brought to [-1, 1], not rounded. The
# frames are resized as those of the two-stream networks, so that all of them share one computation of flow.
_I3D_FLOW = InputSpec(
    "clip",
    PixelSpec(resize=(256,), crop=None),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    flow=FlowInput(with_rgb=False),
    flow_crop=(224, 224),
)


@register_family
def flow_networks() -> Iterable[Network]:
    """``two_stream_*`` for some image networks, and ``i3d_flow``."""
    yield from (_two_stream(name) for name in _BACKBONES)
    yield Network(
        name="i3d_flow",
        family="i3d",
        source="featlib",
        kind="clip",
        sampling=ClipSampling(frames=65, hop=64, fps=Fraction(25)),
        pretrained=(Pretrained("KINETICS400_FLOW", "I3D_Weights.KINETICS400_FLOW", "", _I3D_FLOW),),
        default="KINETICS400_FLOW",
        constructor=partial(I3D, channels=2),
    )


def _two_stream(name: str) -> Network:
    image = image_network(name)
    return Network(
        name=f"two_stream_{name}",
        family="two_stream",
        source="featlib",
        kind="clip",
        # Stacks meet in one frame, so every flow is in one of them.
        sampling=ClipSampling(frames=_FLOWS + 1, hop=_FLOWS),
        pretrained=tuple(replace(p, input=_stack_input(p.input)) for p in image.pretrained),
        default="IMAGENET1K_V1",
        constructor=partial(TwoStream, partial(torchvision.models.get_model, name, weights=None), image.family),
        exact_frames=_FLOWS + 1,
        penultimate="fusion",
        fusions=("concat", "mean"),
        adapt=partial(two_stream_state, family=image.family, flows=_FLOWS),
    )


def _stack_input(image: InputSpec) -> InputSpec:
    """The frame as the image network reads it; flow in 256 levels, normalised like one more grey channel."""
    flow = FlowInput(with_rgb=True, quantised=True, mean=0.5, std=sum(image.std) / 3)
    pixels = replace(image.pixels, crop=None)
    return replace(image, kind="clip", pixels=pixels, flow=flow, flow_crop=image.pixels.crop)
