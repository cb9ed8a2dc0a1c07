"""The options of ``featlib train``, in the order in which its help shows them."""

from collections.abc import Callable
from typing import Any

import click

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
    click.option("--out", metavar="FOLDER", help="Folder or URL for the head, its figures and its learning curve."),
    click.option("--hidden", type=int, help="Width of the head; default 256, of attention 128."),
    click.option("--layers", type=int, help="Of rnn, lstm and gru, default 1; blocks of tcn, default 4."),
    click.option("--embedding-size", type=int, help="Of an embedding's vector; default 64."),
    click.option("--epochs", type=int, help="At most; default 100."),
    click.option("--batch-size", type=int, help="Videos in a batch, pairs and triplets are those of one; default 32."),
    click.option("--learning-rate", type=float, help="Of AdamW; default 0.001."),
    click.option("--weight-decay", type=float, help="Of AdamW; default 0.0001."),
    click.option("--patience", type=int, help="Epochs without a better validation loss until it ends; default 10."),
    click.option("--seed", type=int, help="Of first weights, order, dropout and the validation split; default 0."),
    click.option("--validation", type=float, help="Share of each class held out where no split is given; default 0.2."),
    click.option("--memory-mb", type=int, help="Most megabytes of features in memory; default half of the machine's."),
    click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON."),
)


def train_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options of ``featlib train``."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
