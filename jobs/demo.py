"""A first look: makes sample media, runs the real job over them, shows what came out. ``make demo`` runs this."""

import shlex
import subprocess
import sys
from pathlib import Path

import click
import pandas as pd

import featlib
from featlib.media.samples import make_samples

DATASET = "demo"
MODELS = ("resnet18", "r3d_18")
_LOOKED_AT = ["media_id", "uri", "clip_index", "start_s", "end_s", "feature_shape", "feature"]
_FIRST_VALUES = 3


def command(media: Path, output: Path) -> list[str]:
    """The job that a person would type, after ``featlib``."""
    models = [word for model in MODELS for word in ("--model", model)]
    sampling = ["--frame-sampling", "resnet18=fps:5", "--clip-sampling", "r3d_18=tail=pad"]
    return ["extract", str(media), "--output", str(output), "--dataset", DATASET, *models, "--weights", "random:0",
            *sampling]  # fmt: skip


def table(output: Path, model: str) -> pd.DataFrame:
    """One row a media item of ``model``: its rows, the shape of a feature, and how the first one begins."""
    features = featlib.open_features(str(output), dataset=DATASET, model=model)
    rows = features.to_pandas(_LOOKED_AT)
    first = rows[rows.clip_index == 0].set_index("media_id")
    shown = features.outcomes().set_index("media_id")[["uri", "status", "num_rows"]]
    shown["feature size"] = first.feature_shape.map(lambda shape: "x".join(map(str, shape)))
    shown["first values"] = first.feature.map(lambda values: " ".join(f"{v:.3f}" for v in values[:_FIRST_VALUES]))
    shown.insert(0, "media", shown.pop("uri").map(lambda uri: uri.rsplit("/", 1)[-1]))
    shown.insert(0, "model", model)
    return shown.fillna("").reset_index(drop=True)


def main(folder: Path = Path("demo")) -> int:
    """Runs the demo in ``folder``; gives the exit code of the job."""
    media, output = folder / "media", folder / "out"
    made = make_samples(media)
    arguments = command(media, output)
    click.echo(f"{len(made)} sample files are in {media}. The job:\n\n  {shlex.join(['featlib', *arguments])}\n")
    code = subprocess.run([sys.executable, "-m", "featlib", *arguments], check=False).returncode
    if code in (1, 2):
        return code
    shown = pd.concat([table(output, model) for model in MODELS], ignore_index=True)
    click.echo(f"\n{shown.to_string(index=False)}\n")
    click.echo(
        "The weights are RANDOM (random:0), so these features mean nothing. For real ones leave --weights out (the\n"
        "network's own weights are downloaded) or give a file: --weights resnet18=weights.pth. Next:\n"
        f"  features = featlib.open_features({str(output)!r}, dataset={DATASET!r}, model='resnet18')\n"
        "  notebooks/first_look.ipynb"
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
