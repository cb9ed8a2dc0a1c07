"""What training leaves for a person: numbers as JSON and CSV, the learning curve as a picture."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from featlib.errors import ConfigError
from featlib.heads.training import Epoch


def check_plotting() -> None:
    """Raises ConfigError when the learning curve cannot be drawn."""
    if find_spec("matplotlib") is None:
        raise ConfigError("the learning curve needs matplotlib, which is not installed; pip install matplotlib")


def metrics_json(metrics: Mapping[str, Any]) -> bytes:
    """The content of ``metrics.json``."""
    return (json.dumps(dict(metrics), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def confusion_csv(table: npt.NDArray[np.int64], classes: Sequence[str]) -> bytes:
    """A confusion matrix with names: a line for each true class, a column for each prediction."""
    lines: list[list[object]] = [["true \\ predicted", *classes]]
    lines += [[name, *row.tolist()] for name, row in zip(classes, table, strict=True)]
    return _csv(lines)


def curve_csv(curve: Sequence[Epoch]) -> bytes:
    """The learning curve: a line an epoch, counted from 1."""
    lines: list[list[object]] = [["epoch", "train_loss", "validation_loss"]]
    lines += [[number, repr(e.train_loss), repr(e.validation_loss)] for number, e in enumerate(curve, start=1)]
    return _csv(lines)


def _csv(lines: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()


def curve_png(curve: Sequence[Epoch], best: int, title: str) -> bytes:
    """The learning curve as a picture, with the epoch that was kept marked.

    Args:
        best: Index of that epoch, from 0.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    numbers = range(1, len(curve) + 1)
    axes.plot(numbers, [e.train_loss for e in curve], marker=".", label="train")
    axes.plot(numbers, [e.validation_loss for e in curve], marker=".", label="validation")
    axes.axvline(best + 1, color="grey", linestyle=":", label=f"kept: epoch {best + 1}")
    axes.set(title=title, xlabel="epoch", ylabel="loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120, metadata={"Software": None})
    return picture.getvalue()
