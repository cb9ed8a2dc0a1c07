"""Detectors with random weights that find something, and plain computations of what is expected of them.

Nothing of featlib takes part: networks come from torchvision's constructors, vectors from state dicts.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import get_model
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign, roi_align

RCNN = (
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "keypointrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
)
NAMES = (
    *RCNN,
    "fcos_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)
SMALL = ("fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large")
LOGIT_STD = 2.5


def pictures(count: int = 2, height: int = 241, width: int = 323, seed: int = 0) -> Tensor:
    """(count, 3, height, width): coarse noise, so that maps differ from place to place."""
    noise = torch.rand((count, 3, 12, 16), generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(noise, size=(height, width), mode="bicubic").clamp(0, 1)


def shrink(network: Any) -> Any:
    """Makes the large detectors read pictures at a third of their size and look at 100 proposals: it saves minutes."""
    if network.transform.fixed_size is None and network.transform.min_size == (800,):
        network.transform.min_size = (256,)
        if hasattr(network, "rpn"):
            network.rpn._post_nms_top_n["testing"] = 100
    return network


def plain(name: str, *, masks: bool = False, **settings: Any) -> Any:
    """torchvision's detector with the weights of ``lively``; masks and keypoints cost minutes and change no box."""
    network = get_model(name, weights=None, weights_backbone=None, **settings)
    network.load_state_dict(lively(name))
    return shrink(network.eval() if masks else without_masks(network.eval()))


def without_masks(network: Any) -> Any:
    """Takes masks and keypoints away."""
    if hasattr(network, "roi_heads"):
        network.roi_heads.mask_head = network.roi_heads.keypoint_head = None
    return network


def detections(network: nn.Module, images: Tensor) -> list[dict[str, Tensor]]:
    """torchvision's own forward."""
    with torch.inference_mode():
        found: list[dict[str, Tensor]] = network(list(images))
    return found


@lru_cache(maxsize=2)
def lively(name: str) -> Mapping[str, Tensor]:
    """Weights with which the detector is sure of some boxes; the variances of batch norm are small, so its eps counts.

    Left alone, a random detector gives each class the same small probability.
    """
    torch.manual_seed(3)
    with torch.inference_mode(False), torch.no_grad():  # whoever asks first, others may load them
        whole = get_model(name, weights=None, weights_backbone=None)
        weights = whole.state_dict()  # of all parts, shared with those that are changed below
        network = shrink(without_masks(whole.eval()))
        images = pictures()
        for convolution in _followed_by_norm(network):
            convolution.weight.mul_(0.05)
        _settle_norms(network, images)
        for layer in _deciding(network):
            _spread(layer, network, images)
        if hasattr(network, "roi_heads"):
            network.roi_heads.box_predictor.bbox_pred.weight.mul_(20)  # boxes move away from their proposals
    return weights  # type: ignore[no-any-return]


def _followed_by_norm(network: nn.Module) -> list[nn.Conv2d]:
    return [m for m in network.backbone.modules() if isinstance(m, nn.Conv2d) and m.bias is None]


def _settle_norms(network: nn.Module, images: Tensor) -> None:
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    network(list(images))
    network.eval()


def _deciding(network: Any) -> list[nn.Module]:
    """Layers that give the logits of objects and of classes, in order of execution."""
    if hasattr(network, "roi_heads"):
        return [network.rpn.head.cls_logits, network.roi_heads.box_predictor.cls_score]
    head = network.head.classification_head
    if hasattr(head, "cls_logits"):
        return [head.cls_logits]
    return [level[-1] if isinstance(level, nn.Sequential) else level for level in head.module_list]


def _spread(layer: Any, network: nn.Module, images: Tensor) -> None:
    """Scales a layer so that its outputs have a standard deviation of ``LOGIT_STD`` around zero."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _module, _args, output: seen.append(output))
    layer.bias.zero_()
    network(list(images))
    hook.remove()
    layer.weight.mul_(LOGIT_STD / torch.cat([s.flatten() for s in seen]).std())


def resized_size(network: Any, height: int, width: int) -> tuple[int, int]:
    """Height and width to which an R-CNN brings a picture: short side ``min_size``, long side at most ``max_size``."""
    short, long = sorted((height, width))
    scale = min(network.transform.min_size[-1] / short, network.transform.max_size / long)
    return int(height * scale), int(width * scale)


def network_input(network: Any, image: Tensor) -> Tensor:
    """(1, 3, H, W): normalised, resized, and filled with zeros to the next multiple of 32."""
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    height, width = resized_size(network, *image.shape[1:])
    x = functional.interpolate(((image - mean) / std)[None], size=(height, width), mode="bilinear")
    return functional.pad(x, (0, -width % 32, 0, -height % 32))


def box_vectors(network: Any, image: Tensor, boxes: Tensor, *, head_layers: int = 7) -> Tensor:
    """Box head of an R-CNN at ``boxes`` (K, 4) given in pixels of the resized picture.

    Args:
        head_layers: How many layers of the second version's head are run; it has 7, the last is a ReLU.
    """
    x = network_input(network, image)
    height = resized_size(network, *image.shape[1:])[0]
    maps = [m for key, m in network.backbone(x).items() if key in "0123"]
    strides = [2 ** round(-torch.log2(torch.tensor(m.shape[2] / height)).item()) for m in maps]
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    levels = torch.floor(4 + torch.log2(sides / 224) + 1e-6)  # equation 1 of the FPN paper
    finest, coarsest = (int(torch.log2(torch.tensor(float(s)))) for s in (strides[0], strides[-1]))
    levels = levels.clamp(finest, coarsest).int() - finest
    pooled = torch.stack(
        [
            roi_align(maps[level], [box[None]], 7, 1 / strides[level], sampling_ratio=2)[0]
            for box, level in zip(boxes, levels.tolist(), strict=True)
        ]
    )
    return _head(network.state_dict(), pooled, head_layers)


def _head(state: Mapping[str, Tensor], x: Tensor, num_layers: int) -> Tensor:
    name = "roi_heads.box_head"
    if f"{name}.fc6.weight" in state:
        for layer in ("fc6", "fc7"):
            x = functional.linear(x.flatten(1), state[f"{name}.{layer}.weight"], state[f"{name}.{layer}.bias"]).relu()
        return x
    for number in range(4):
        norm = [state[f"{name}.{number}.1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        x = functional.conv2d(x, state[f"{name}.{number}.0.weight"], padding=1)
        x = functional.batch_norm(x, *norm).relu()
    x = functional.linear(x.flatten(1), state[f"{name}.5.weight"], state[f"{name}.5.bias"])
    return x.relu() if num_layers == 7 else x


class Brightness(nn.Module):
    """A backbone with one map: how bright each 4 x 4 pixels are."""

    out_channels = 1

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"0": functional.avg_pool2d(x.mean(dim=1, keepdim=True), 4)}


class BrightPlaces(nn.Module):
    """A proposal head that is sure of anchors around which it is bright, and moves none."""

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        around = [functional.avg_pool2d(level, 9, stride=1, padding=4) for level in maps]
        return [20 * a - 10 for a in around], [torch.zeros_like(a).expand(-1, 4, -1, -1) for a in around]


def bright_square_detector() -> FasterRCNN:
    """An R-CNN, set by hand, that reads pictures of 241 lines at twice their size and finds squares of 16 pixels."""
    network = FasterRCNN(
        Brightness(),
        min_size=482,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_anchor_generator=AnchorGenerator(((32,),), ((1.0,),)),
        rpn_head=BrightPlaces(),
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
        box_head=nn.Flatten(),
        box_predictor=FastRCNNPredictor(49, 2),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.roi_heads.box_predictor.cls_score.weight[1] = 1 / 7
        network.roi_heads.box_predictor.cls_score.bias[1] = -3.5
    return network
