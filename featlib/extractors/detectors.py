"""All detectors of torchvision: what is published of each, and how it is built without any download."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from featlib.errors import ConfigError
from featlib.extractors import probe
from featlib.extractors.light_torchvision import torchvision
from featlib.extractors.network import Network, Pretrained, Settings, StateDict
from featlib.extractors.registry import CROP, Description, describe, register_family
from featlib.models.detection import suppressing_part, vector_size
from featlib.sampling import FrameSampling
from featlib.spec import InputSpec, PixelSpec

# Detectors resize and normalise for themselves: they read whole frames, with values in [0, 1].
WHOLE_FRAMES = InputSpec("frame", PixelSpec((), None), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

# Built by torchvision with frozen batch norm as soon as any weights are asked for, with plain batch norm otherwise.
# The arithmetic differs in the last bits, and the frozen one has no learned numbers.
_FROZEN_NORM = frozenset(
    (
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_resnet50_fpn",
        "fcos_resnet50_fpn",
        "keypointrcnn_resnet50_fpn",
        "maskrcnn_resnet50_fpn",
        "retinanet_resnet50_fpn",
    )
)
# Weights of a time when frozen batch norm ignored its eps; torchvision sets it to zero after it has loaded them.
_ZERO_EPS = frozenset(
    (
        "FasterRCNN_ResNet50_FPN_Weights.COCO_V1",
        "KeypointRCNN_ResNet50_FPN_Weights.COCO_V1",
        "MaskRCNN_ResNet50_FPN_Weights.COCO_V1",
        "RetinaNet_ResNet50_FPN_Weights.COCO_V1",
    )
)
_EPS = 1e-5  # that of torchvision's frozen batch norm

_KEYPOINTS = "roi_heads.keypoint_predictor.kps_score_lowres.weight"
# By family, the weights whose rows are the classes, and those whose rows are the four sides of a box of each anchor.
_BOX_PREDICTOR = ("roi_heads.box_predictor.cls_score.weight", None)
_DENSE_HEAD = ("head.classification_head.cls_logits.weight", "head.regression_head.bbox_reg.weight")
_ROWS: dict[str, tuple[str, str | None]] = {
    "detection.faster_rcnn": _BOX_PREDICTOR,
    "detection.mask_rcnn": _BOX_PREDICTOR,
    "detection.keypoint_rcnn": _BOX_PREDICTOR,
    "detection.retinanet": _DENSE_HEAD,
    "detection.fcos": _DENSE_HEAD,
    "detection.ssd": ("head.classification_head.module_list.0.weight", "head.regression_head.module_list.0.weight"),
    "detection.ssdlite": (
        "head.classification_head.module_list.0.1.weight",
        "head.regression_head.module_list.0.1.weight",
    ),
}


@dataclass(frozen=True)
class DetectorWeights:
    """Published weights of one detector.

    Args:
        name: As a user types it, ``COCO_V1``.
        enum: With its class, ``FasterRCNN_ResNet50_FPN_Weights.COCO_V1``.
        url: Of the state dict.
        categories: Name of each label, ``__background__`` and ``N/A`` among them.
    """

    name: str
    enum: str
    url: str
    categories: tuple[str, ...]


@dataclass(frozen=True)
class DetectorSpec:
    """One detector of torchvision; what is not stored is asked of the network itself, once.

    Args:
        family: Module of torchvision that builds it, ``detection.faster_rcnn``.
        default: Name of the weights that ``--weights default`` means.
    """

    name: str
    family: str
    weights: tuple[DetectorWeights, ...]
    default: str

    @property
    def is_rcnn(self) -> bool:
        """Whether its boxes have vectors."""
        return self.vector_size is not None

    @property
    def vector_size(self) -> int | None:
        """Values in the vector of a box; None when the detector is no R-CNN."""
        return vector_size(_published(self.name))

    @property
    def score_threshold(self) -> float:
        """Score above which boxes are reported when nobody says otherwise."""
        return float(suppressing_part(_published(self.name)).score_thresh)

    @property
    def boxes(self) -> int:
        """Most boxes of a picture when nobody says otherwise."""
        return int(suppressing_part(_published(self.name)).detections_per_img)

    @property
    def parameters(self) -> int:
        """Learned numbers, those of mask and keypoint branches among them, as published."""
        return sum(p.numel() for p in _published(self.name).parameters())


def _spec(name: str) -> DetectorSpec:
    weights = torchvision.models.get_model_weights(name)
    family = torchvision.models.get_model_builder(name).__module__.removeprefix("torchvision.models.")
    published = (DetectorWeights(w.name, str(w), w.url, tuple(w.meta["categories"])) for w in weights)
    return DetectorSpec(name, family, tuple(published), weights.DEFAULT.name)


DETECTORS: Mapping[str, DetectorSpec] = {
    name: _spec(name) for name in torchvision.models.list_models(module=torchvision.models.detection)
}


def network(name: str) -> Network:
    """The detector as an entry of the registry; its settings are those of ``settings_in``."""
    spec = DETECTORS[name]
    return Network(
        name=name,
        family=spec.family,
        source="torchvision",
        kind="frame",
        sampling=FrameSampling.parse("fps:1"),
        pretrained=tuple(
            Pretrained(w.name, w.enum, w.url, WHOLE_FRAMES, w.categories, has_hash_in_name=True) for w in spec.weights
        ),
        default=spec.default,
        constructor=partial(_construct, name),
        detects=True,
        layer="box_head",
    )


@register_family
def detection_networks() -> Iterable[Network]:
    """torchvision's detectors."""
    return [network(name) for name in DETECTORS]


def detector(name: str, settings: Settings = ()) -> nn.Module:
    """The detector in eval mode with random weights; nothing is downloaded, not for its backbone either.

    Boxes, scores and labels are computed as torchvision does it. Mask and keypoint branches are there, so that their
    weights load, but are not computed.

    Args:
        settings: ``num_classes`` (background counted), ``num_keypoints`` of a keypoint R-CNN, ``frozen_norm`` and
            ``zero_eps`` (0 or 1); see ``settings_in``. What is left out is as torchvision builds it without weights.
    """
    return _construct(name, **{key: int(value) for key, value in settings}).eval()


def _construct(name: str, *, frozen_norm: int = 0, zero_eps: int = 0, **sizes: int) -> nn.Module:
    # ssdlite runs its own backbone while it is being built, which tensors without data do not stand.
    real = torch._C.DisableTorchFunction() if DETECTORS[name].family == "detection.ssdlite" else nullcontext()
    with real:
        built = torchvision.models.get_model(name, weights=None, weights_backbone=None, **sizes)
    if frozen_norm:
        _freeze_norm(built.backbone, 0.0 if zero_eps else _EPS)
    if vector_size(built) is not None:
        built.roi_heads.mask_roi_pool = built.roi_heads.keypoint_roi_pool = None
    return built  # type: ignore[no-any-return]


def _freeze_norm(backbone: nn.Module, eps: float) -> None:
    for module in list(backbone.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, torchvision.ops.FrozenBatchNorm2d(child.num_features, eps))


def settings_in(name: str, state: StateDict, source: str, weights: str | None = None) -> Settings:
    """How the detector is built for the weights of a file, so that it computes what torchvision computes with them.

    Args:
        source: Names the file in errors.
        weights: Name of the published weights that the file is, when it is known to be one. Some of these need the
            eps of batch norm to be zero; other files are run with torchvision's usual one.

    Raises:
        ConfigError: The number of classes cannot be told.
    """
    settings: dict[str, int] = {"num_classes": num_classes_in(name, state, source)}
    if name in _FROZEN_NORM:
        published = next((w.enum for w in DETECTORS[name].weights if w.name == weights), None)
        settings |= {"frozen_norm": 1, "zero_eps": int(published in _ZERO_EPS)}
    keypoints = state.get(_KEYPOINTS)
    if DETECTORS[name].family == "detection.keypoint_rcnn" and keypoints is not None and keypoints.ndim == 4:
        settings["num_keypoints"] = keypoints.shape[1]
    return tuple(settings.items())


def num_classes_in(name: str, state: StateDict, source: str) -> int:
    """Classes, background counted, that the weights in a file tell apart.

    Raises:
        ConfigError: The weights of the last layers are missing or of a shape that no number of classes gives.
    """
    class_key, box_key = _ROWS[DETECTORS[name].family]
    missing = [key for key in (class_key, box_key) if key is not None and key not in state]
    what = f"--weights {source}: do not fit {name}"
    if missing:
        raise ConfigError(f"{what}: missing {', '.join(missing)}; give the weights of this network")
    rows = _rows(state, class_key)
    anchors = 1 if box_key is None else _rows(state, box_key) // 4
    if anchors == 0 or rows == 0 or rows % anchors:
        raise ConfigError(
            f"{what}: {class_key} has {rows} rows, which is no number of classes for {anchors} anchors; "
            "give the weights of this network"
        )
    return rows // anchors


def _rows(state: StateDict, key: str) -> int:
    return state[key].shape[0] if state[key].ndim else 0


@cache
def _published(name: str) -> nn.Module:
    """The detector as its published weights make it, without data."""
    settings: Settings = (("frozen_norm", 1),) if name in _FROZEN_NORM else ()
    return probe.skeleton(network(name), settings).to("meta")


def count_flops(name: str, height: int = 480, width: int = 640) -> int:
    """Floating-point operations for one picture of this size; a multiply-add counts as two.

    A picture of 480 x 640 becomes 800 x 1066, padded to 800 x 1088; 320 x 426, padded to 320 x 448, for the small
    Faster R-CNN, and 300 or 320 squared for SSD. Counted are backbone, dense heads and, for R-CNNs, the box head at
    as many proposals as pass (1000, for the small one 150), which is the most it can be asked for; not counted are
    the vectors, one more box head for each box that is reported.
    """
    built: Any = _published(name)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        resized, _ = built.transform([torch.empty((3, height, width), device="meta")])
        maps = built.backbone(resized.tensors)
        if DETECTORS[name].is_rcnn:
            built.rpn.head(list(maps.values()))
            pool = built.roi_heads.box_roi_pool.output_size
            pooled = torch.empty((built.rpn.post_nms_top_n(), built.backbone.out_channels, *pool), device="meta")
            built.roi_heads.box_predictor(built.roi_heads.box_head(pooled))
        else:
            built.head(list(maps.values()))
    return int(counter.get_total_flops())


def describe_detector(found: Network) -> Description:
    """What ``featlib models`` says about a detector, or about a network behind one."""
    name = found.name.removeprefix(CROP).partition("+")[0]
    spec = DETECTORS[name]
    own = () if spec.vector_size is None else (spec.vector_size,)
    inner = describe(found.embedder) if found.embedder else None
    return Description(
        name=found.name,
        family=found.family,
        kind=found.kind,
        input=WHOLE_FRAMES,
        sampling=str(found.sampling),
        layer=inner.layer if inner else "box_head" if own else "none",
        feature_shape=inner.feature_shape if inner else own,
        parameters=spec.parameters + (inner.parameters if inner else 0),
        flops=count_flops(name) + (inner.flops * spec.boxes if inner else 0),
        weights=tuple(p.name for p in found.pretrained),
        default_weights=found.default,
        source=found.source,
        version=found.version,
    )
