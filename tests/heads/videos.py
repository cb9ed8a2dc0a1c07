"""Videos whose classes are known by construction: by the order of their steps, by one step, by a place in space."""

import numpy as np
import numpy.typing as npt

from featlib.heads.training import Floats, Videos

D = 8


def moving(count: int, seed: int) -> Videos:
    """A bump that wanders over D cells from a random start: class 0 to the right, class 1 to the left.

    Each video of class 1 is one of class 0 played backwards, so that the frames of the classes are the same.
    """
    random = np.random.default_rng(seed)
    steps: list[Floats] = []
    for _ in range(count // 2):
        length, start = int(random.integers(6, 14)), random.uniform(0, D)
        centres = (start + 0.7 * np.arange(length)) % D
        distance = np.abs(np.arange(D)[None] - centres[:, None])
        video = np.exp(-(np.minimum(distance, D - distance) ** 2)).astype(np.float32)
        steps += [video, video[::-1].copy()]
    return Videos(steps, np.arange(len(steps)) % 2)


def planted(count: int, seed: int, *, bright: bool = True) -> tuple[Videos, npt.NDArray[np.int64]]:
    """Noise is class 2; two thirds have one loud step whose content tells class 0 or 1; and where (-1: nowhere).

    Args:
        bright: Such steps of both classes have something in common.
    """
    random = np.random.default_rng(seed)
    steps, labels, places = [], [], []
    for i in range(count):
        video = random.normal(0, 0.5, (int(random.integers(5, 12)), D)).astype(np.float32)
        label, place = i % 3, int(random.integers(len(video)))
        if label < 2:
            video[place] = 0
            video[place, [label, D - 1] if bright else label] = 3
        steps.append(video)
        labels.append(label)
        places.append(place if label < 2 else -1)
    return Videos(steps, np.array(labels)), np.array(places)


def many_classes(classes: range, per_class: int, seed: int) -> Videos:
    """Each class is a point in 4 of 16 dimensions; the others are loud noise that hides it from plain distances."""
    points = np.random.default_rng(7).normal(size=(100, 4))
    random = np.random.default_rng(seed)
    steps, labels = [], []
    for label in classes:
        for _ in range(per_class):
            video = random.normal(0, 1, (6, 16)) + random.normal(0, 2, 16)
            video[:, :4] = points[label] * 1.5 + random.normal(0, 0.1, (6, 4))
            steps.append(video.astype(np.float32))
            labels.append(label)
    return Videos(steps, np.array(labels))


def points(count: int, seed: int) -> Videos:
    """Two classes around -1 and 1, in turn; easy."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    steps = [(2.0 * label - 1 + random.normal(0, 0.3, (3, 4))).astype(np.float32) for label in labels]
    return Videos(steps, labels)
