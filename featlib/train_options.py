"""The options of ``featlib train``: what is shared, what is for heads and what for backbones."""

from collections.abc import Callable, Mapping
from typing import Any

import click

from featlib.errors import ConfigError

_HEADS = ("linear", "rnn", "lstm", "gru", "tcn", "attention", "hard_attention", "embedding")

_OPTIONS = (
    click.option("--config", metavar="JOB.YAML", help="Job file with the same options as keys; a flag beats the file."),
    click.option("--output", metavar="URL", help="Where `featlib extract` wrote to."),
    click.option("--dataset", metavar="NAME", help="The dataset= partition."),
    click.option("--features", multiple=True, metavar="LABEL", help="A model= partition to read; several are fused."),
    click.option("--fuse", type=click.Choice(["concat", "mean"]), help="Of several partitions; default concat."),
    click.option("--head", type=click.Choice(_HEADS), help="linear and embedding read the mean of a video."),
    click.option("--gated", is_flag=True, default=None, help="The gated form of attention."),
    click.option(
        "--loss",
        type=click.Choice(["cross_entropy", "contrastive", "triplet"]),
        help="Default cross_entropy; of an embedding triplet.",
    ),
    click.option(
        "--labels",
        metavar="FILE",
        help="CSV, JSON Lines or Parquet with media_id or uri, label and, if wanted, split (train, val, test); "
        "default: what the manifest said.",
    ),
    click.option(
        "--out", metavar="FOLDER", help="For a head a folder or URL, for a backbone a new or empty local folder."
    ),
    click.option("--hidden", type=int, help="Width of the head; default 256, of attention 128."),
    click.option("--layers", type=int, help="Of rnn, lstm and gru, default 1; blocks of tcn, default 4."),
    click.option("--embedding-size", type=int, help="Of an embedding's vector; default 64."),
    click.option("--memory-mb", type=int, help="Most megabytes of features in memory; default half of the machine's."),
    click.option("--backbone", metavar="NETWORK", help="Train a network itself, on the labelled media in MANIFEST..."),
    click.option("--weights", metavar="W", help="What the backbone starts from, as of extract; default its own."),
    click.option("--weights-sha256", metavar="HEX", help="Refuse a weights file of the backbone with another SHA-256."),
    click.option("--unfreeze", metavar="all|last:N", help="The backbone's layers that are trained; default all."),
    click.option("--optimizer", type=click.Choice(["sgd", "adam"]), help="Of a backbone, default sgd; heads use adam."),
    click.option("--momentum", type=float, help="Of sgd; default 0.9."),
    click.option("--preprocess", metavar="ENUM", help="Of a backbone, as of extract."),
    click.option("--frame-sampling", metavar="S", help="Of a backbone, as of extract."),
    click.option("--clip-sampling", metavar="S", help="Of a backbone, as of extract."),
    click.option("--frames-per-video", type=int, help="Of a backbone: most frames or clips of a video; default all."),
    click.option("--flip", is_flag=True, default=None, help="Of a backbone: mirror half of the frames."),
    click.option("--max-failed", type=float, help="Of a backbone: share of media that may be unusable; default 0.05."),
    click.option("--cache-mb", type=int, help="Of a backbone: most megabytes of decoded pictures; default 16384."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Of a backbone; default auto."),
    click.option("--uri-column", help="Of a manifest: the column that holds the URIs; default uri."),
    click.option(
        "--local-media", is_flag=True, default=None, help="A manifest in an object store may name local paths."
    ),
    click.option("--limit", type=int, help="Of a manifest: only the first N media."),
    click.option("--epochs", type=int, help="At most; default 100, of a backbone 20."),
    click.option(
        "--batch-size", type=int, help="Videos, or frames and clips of a backbone; default 32, of a backbone 16."
    ),
    click.option("--learning-rate", type=float, help="Default 0.001."),
    click.option("--weight-decay", type=float, help="Default 0.0001."),
    click.option(
        "--patience",
        type=int,
        help="Epochs without a better validation loss until it ends; default 10, of a backbone 5.",
    ),
    click.option("--seed", type=int, help="Of first weights, order, dropout and the validation split; default 0."),
    click.option("--validation", type=float, help="Share of each class held out where no split is given; default 0.2."),
    click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON."),
)


def train_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the arguments and options of ``featlib train``."""
    function = click.argument("manifest", nargs=-1)(function)
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def trainer(given: Mapping[str, Any]) -> tuple[Callable[..., Any], Any]:
    """The job that options ask for, of a head or of a backbone, and the kind of its configuration.

    Raises:
        ConfigError: An option is for the other job.
    """
    from featlib.config import job_file
    from featlib.train_config import FinetuneConfig, TrainConfig

    path = given.get("config")
    is_backbone = bool(given.get("backbone")) or (path is not None and "backbone" in job_file(path))
    mine = set((FinetuneConfig if is_backbone else TrainConfig).model_fields)
    other = set((TrainConfig if is_backbone else FinetuneConfig).model_fields)
    wrong = [k for k, v in given.items() if v not in (None, ()) and k in other - mine]
    if wrong:
        name, job = wrong[0].replace("_", "-"), "a backbone" if is_backbone else "a head"
        option = "MANIFEST..." if name == "manifest" else f"--{name}"
        raise ConfigError(f"{option}: means nothing when {job} is trained; leave it out")
    if is_backbone:
        from featlib.finetuning import finetune

        return finetune, FinetuneConfig
    from featlib.training import train

    return train, TrainConfig
