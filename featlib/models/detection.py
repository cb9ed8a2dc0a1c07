"""Regions of pictures: what a detector of torchvision finds, and for R-CNNs a vector for each box."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from featlib.sampling import RegionChoice


@dataclass(frozen=True)
class Regions:
    """What was found in one picture, best score first.

    Args:
        boxes: (K, 4) float32: x1, y1, x2, y2 in pixels of the source picture.
        scores: (K,) float32, in [0, 1].
        labels: (K,) int64, an index into the categories of the weights.
        vectors: (K, D) float32 of an R-CNN's box head; None for detectors that have none.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    vectors: Tensor | None

    def __len__(self) -> int:
        return len(self.boxes)


class RegionDetector(nn.Module):
    """A detector of torchvision as a source of regions.

    The vector of a box is the output of the box head (after its ReLU) for the box that is reported: features are
    pooled once more, at the final box. The detector itself pools them at the proposal from which the box grew, so a
    proposal's vector describes another place, and the same one for all boxes that grew from it. The backbone runs
    once.

    As in torchvision each class decides alone, so a place can come back under several labels.

    Args:
        network: From ``featlib.extractors.detectors``; its number of boxes and its threshold are set to ``choice``.
    """

    def __init__(self, network: nn.Module, choice: RegionChoice) -> None:
        super().__init__()
        self.network: Any = network.eval()
        self.vector_size = vector_size(network)
        suppression = suppressing_part(network)
        suppression.detections_per_img = choice.count
        if choice.policy == "fixed":
            suppression.score_thresh = 0.0
        for part in _parts_that_decide(network):
            part.register_forward_hook(_in_float32)

    def forward(self, images: Tensor) -> list[Regions]:
        """Regions of each of ``images``: (N, 3, H, W) float32 RGB in [0, 1], in the size of the source."""
        pictures = list(images)
        if self.vector_size is None:
            return [Regions(f["boxes"], f["scores"], f["labels"], None) for f in self.network(pictures)]
        return self._with_vectors(pictures)

    def _with_vectors(self, pictures: list[Tensor]) -> list[Regions]:
        """torchvision's own forward of an R-CNN, step by step, and the box head once more."""
        network, pool = self.network, self.network.roi_heads.box_roi_pool
        # The strides of the feature maps are guessed from the first picture and kept; an extremely long one gives
        # strides that are wrong for all that follow.
        pool.scales = pool.map_levels = None
        resized, _ = network.transform(pictures)
        maps = network.backbone(resized.tensors)
        proposals, _ = network.rpn(resized, maps)
        found, _ = network.roi_heads(maps, proposals, resized.image_sizes)
        boxes = [f["boxes"] for f in found]
        vectors = network.roi_heads.box_head(pool(maps, boxes, resized.image_sizes)).float()
        found = network.transform.postprocess(found, resized.image_sizes, [tuple(p.shape[-2:]) for p in pictures])
        return [
            Regions(f["boxes"], f["scores"], f["labels"], own)
            for f, own in zip(found, vectors.split([len(b) for b in boxes]), strict=True)
        ]


def vector_size(network: nn.Module) -> int | None:
    """Values in the vector of a box; None when the detector is no R-CNN."""
    heads: Any = getattr(network, "roi_heads", None)
    return None if heads is None else int(heads.box_predictor.cls_score.in_features)


def suppressing_part(network: nn.Module) -> Any:
    """The module that holds ``score_thresh`` and ``detections_per_img``."""
    return getattr(network, "roi_heads", network)


def _parts_that_decide(network: Any) -> Sequence[nn.Module]:
    """Those whose outputs take part in the arithmetic of boxes."""
    heads = [network.head] if vector_size(network) is None else [network.rpn.head, network.roi_heads.box_predictor]
    return [network.backbone, *heads]


def _in_float32(module: nn.Module, args: object, output: Any) -> Any:
    """Keeps the coordinates exact under autocast: torchvision computes boxes in the type of the maps and offsets, and
    bfloat16 has steps of four pixels at 1000."""
    if isinstance(output, Tensor):
        if output.is_floating_point() and not output.isfinite().all():
            raise ValueError("the detector gave NaN or infinite values")  # which would be no box at all
        return output.float()
    if isinstance(output, dict):
        return type(output)((key, _in_float32(module, args, value)) for key, value in output.items())
    return type(output)(_in_float32(module, args, value) for value in output)
