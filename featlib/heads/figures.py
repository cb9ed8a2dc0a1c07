"""What any training leaves for a person: numbers as JSON and CSV, the learning curve as a picture."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from featlib.errors import StoppedError
from featlib.heads.training import Fit
from featlib.redaction import redact

NO_PICTURE = "curve.png was left out: matplotlib is not there; pip install 'featlib[train]' brings it"


@contextmanager
def writing_to(out: str) -> Iterator[None]:
    """Says in one line that the results of a training cannot be written.

    Raises:
        StoppedError: In place of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise StoppedError(f"--out {redact(out)}: cannot be written ({error.strerror or error})") from error


def metrics_json(metrics: Mapping[str, Any]) -> bytes:
    """The content of ``metrics.json``."""
    return (json.dumps(dict(metrics), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def curve_csv(fit: Fit) -> bytes:
    """The learning curve: epoch (from 1), training loss, validation loss."""
    rows = [[number, e.train_loss, e.validation_loss] for number, e in enumerate(fit.curve, start=1)]
    return table_csv([["epoch", "train_loss", "validation_loss"], *rows])


def table_csv(rows: Sequence[Sequence[object]]) -> bytes:
    """A table whose first row is its head."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def curve_png(fit: Fit, title: str) -> bytes | None:
    """The learning curve as a picture, the epoch that was kept marked; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return None
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    epochs = range(1, len(fit.curve) + 1)
    axes.plot(epochs, [e.train_loss for e in fit.curve], marker=".", label="training")
    axes.plot(epochs, [e.validation_loss for e in fit.curve], marker=".", label="validation")
    axes.axvline(fit.best + 1, color="grey", linestyle=":", label=f"kept: epoch {fit.best + 1}")
    axes.set(xlabel="epoch", ylabel="loss", title=title.replace("$", r"\$"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120, metadata={"Software": None})
    return picture.getvalue()
