"""What fine-tuning did, and the folder that it is written to."""

import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featlib.errors import ConfigError
from featlib.finetuning.pictures import LeftOut
from featlib.heads.figures import writing_to
from featlib.heads.training import Fit
from featlib.redaction import redact
from featlib.storage import check_url, is_s3

_SHOWN = 5
WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True)
class FinetuneResult:
    """What fine-tuning did.

    Args:
        out: The folder that was written; ``featlib extract --weights`` takes the file ``weights.safetensors`` in it.
        classes: Names of the labels; with cross-entropy in the order of the network's outputs.
        trained_layers: Names of the layers that were trained, in the order in which they run.
        media: Number of media by split, those left out not counted.
        start: Scores on the validation videos before the first epoch.
        validation: The same of the network that was saved.
        test: The same on the videos of the split ``test``; None without such.
        left_out: Media that could not be used.
        cache_bytes: Size of the decoded pictures.
        seconds: By phase, ``decode`` and ``train``.
    """

    out: str
    network: str
    weights: str
    loss: str
    unfreeze: str
    classes: tuple[str, ...]
    trained_layers: tuple[str, ...]
    media: Mapping[str, int]
    fit: Fit
    start: Mapping[str, Any]
    validation: Mapping[str, Any]
    test: Mapping[str, Any] | None
    left_out: Sequence[LeftOut]
    cache_bytes: int
    seconds: Mapping[str, float]

    @property
    def exit_code(self) -> int:
        """0: a training that ends has done all of it."""
        return 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "out": self.out,
            "network": self.network,
            "weights": self.weights,
            "loss": self.loss,
            "unfreeze": self.unfreeze,
            "classes": list(self.classes),
            "trained_layers": list(self.trained_layers),
            "media": dict(self.media),
            "epochs": len(self.fit.curve),
            "best_epoch": self.fit.best + 1,
            "start": dict(self.start),
            "validation": dict(self.validation),
            "test": None if self.test is None else dict(self.test),
            "left_out": [
                {"media_id": m.media_id, "uri": redact(m.uri), "class": m.error_class, "message": m.error_message}
                for m in self.left_out
            ],
            "cache_bytes": self.cache_bytes,
            "seconds": dict(self.seconds),
        }

    def text(self) -> str:
        """The result for a person, a few lines."""
        media = ", ".join(f"{count} {split}" for split, count in self.media.items())
        lines = [
            f"{self.network} from {self.weights}: {len(self.trained_layers)} layers trained ({self.unfreeze}), "
            f"{len(self.classes)} classes, {media}",
            f"  {len(self.fit.curve)} epochs, the best is {self.fit.best + 1}; decoding {self.seconds['decode']:.1f} s "
            f"({self.cache_bytes / 1e6:.0f} MB), training {self.seconds['train']:.1f} s",
            f"  at the start: {_scores_line(self.start)}",
            f"  validation:   {_scores_line(self.validation)}",
        ]
        if self.test is not None:
            lines.append(f"  test:         {_scores_line(self.test)}")
        return "\n".join([*lines, *self._left_out_lines(), f"  {self.out}/{WEIGHTS_FILE}"])

    def _left_out_lines(self) -> list[str]:
        if not self.left_out:
            return []
        counts = Counter(m.error_class for m in self.left_out)
        lines = [f"  left out: {', '.join(f'{n} {name}' for name, n in counts.most_common())}"]
        lines += [f"    {redact(m.uri)}: {m.error_class}: {m.error_message}" for m in self.left_out[:_SHOWN]]
        more = len(self.left_out) - _SHOWN
        return [*lines, f"    and {more} more in metrics.json"] if more > 0 else lines


def _scores_line(scores: Mapping[str, Any]) -> str:
    shown = (f"{name} {value:.4g}" for name, value in scores.items() if isinstance(value, float))
    return f"{', '.join(shown)} over {scores['videos']} videos"


@contextmanager
def result_folder(out: str) -> Iterator[Path]:
    """A folder to write into that becomes ``out`` when the block ends well, and is removed when it does not.

    Raises:
        ConfigError: ``out`` is not local, is there already and not empty, or cannot be written.
        StoppedError: It cannot be written any more.
    """
    if is_s3(check_url(out)):
        raise ConfigError(f"--out {redact(out)}: must be a local folder; copy it to the store afterwards")
    target = Path(os.path.abspath(check_url(out)))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--out {out}: is there already; give another folder or remove it")
    folder = target.parent / f".{target.name}-{uuid.uuid4().hex}.tmp"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror}); give another folder") from None
    try:
        yield folder
        with writing_to(out):
            os.rename(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
