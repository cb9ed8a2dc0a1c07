"""How good a network is on videos: the clips of a video speak with one voice."""

from typing import Any

import numpy as np
import numpy.typing as npt

from featlib.config import Loss
from featlib.finetuning.fitting import Evaluation, LabelledClips
from featlib.heads.metrics import confusion, mean_average_precision, recall_at_1, top_k

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def of_videos(values: Floats, clips: LabelledClips) -> tuple[Floats, Indices]:
    """The mean of the clips of each video, and the videos' labels; in the order of the videos' numbers."""
    _, first, place = np.unique(clips.videos, return_index=True, return_inverse=True)
    sums = np.zeros((len(first), values.shape[1]), np.float64)
    np.add.at(sums, place, values)
    return (sums / np.bincount(place)[:, None]).astype(np.float32), clips.labels[first]


def scores(found: Evaluation, clips: LabelledClips, loss: Loss) -> dict[str, Any]:
    """Loss, and top-1, top-5 and mAP, or recall at 1, over videos; the number of what they are shares of."""
    values, labels = of_videos(found.values, clips)
    counted = {"loss": found.loss, "clips": len(clips), "videos": len(labels)}
    if loss != "cross_entropy":
        return {**counted, "recall_at_1": recall_at_1(values, labels) if len(labels) > 1 else None}
    return {
        **counted,
        "clip_top_1": top_k(found.values, clips.labels, 1),
        "top_1": top_k(values, labels, 1),
        "top_5": top_k(values, labels, 5),
        "mean_average_precision": mean_average_precision(values, labels),
    }


def confusion_of(found: Evaluation, clips: LabelledClips, num_classes: int) -> npt.NDArray[np.int64]:
    """(num_classes, num_classes) counts of videos: rows are true classes, columns predictions."""
    values, labels = of_videos(found.values, clips)
    return confusion(values.argmax(1), labels, num_classes)
