"""The ``featlib`` command. Every command is a thin layer over a function of the library."""

import errno
import io
import json
import logging
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

import featlib
from featlib.errors import ConfigError, StoppedError
from featlib.extract_options import extract_options, job_values
from featlib.redaction import redact
from featlib.train_options import train_options

if TYPE_CHECKING:
    from featlib.config import Config
    from featlib.finetuning import FinetuneResult
    from featlib.summary import Summary
    from featlib.training import TrainSummary

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # with these a name in a file would steer the terminal


def _store_options(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option("--anon", is_flag=True, default=None, help="Read the object store without credentials.")(
        function
    )
    return click.option("--endpoint-url", help="Object store other than AWS; AWS_ENDPOINT_URL does the same.")(function)


def _partition_options(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option("--model", required=True, metavar="LABEL", help="The model= partition.")(function)
    function = click.option("--dataset", required=True, metavar="NAME", help="The dataset= partition.")(function)
    return click.option("--output", required=True, metavar="URL", help="Where the job wrote to.")(function)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(featlib.__version__, prog_name="featlib")
def cli() -> None:
    """Videos and images in, deep features out: one distributed job, Parquet shards that open in one line."""


@cli.command(
    epilog="""\b
Example:
  featlib extract clips/ --output out --dataset mine --model resnet50 --model r3d_18
  featlib extract s3://b/list.parquet --output s3://b/out --dataset mine --model small=resnet18 --frame-sampling fps:2
"""
)
@extract_options
@_store_options
def extract(as_json: bool, **given: Any) -> None:
    """Extracts features of the media in MANIFEST... (Parquet, CSV, JSON Lines, a list of URIs, a media file, a folder
    or prefix, a glob; several of these). The same command again goes on where it stopped."""
    from featlib.config import extract_config
    from featlib.job import extract as run
    from featlib.progress import reporter

    _log_to_stderr()
    _end_with(run(extract_config(job_values(given)), reporter=reporter()), as_json)


@cli.command(
    epilog="""\b
Example:
  featlib aggregate --output out --dataset mine --features resnet50 --pool mean
  featlib aggregate --output out --dataset mine --features rgb --features flow --fuse concat --label both
  featlib aggregate --output out --dataset mine --features resnet50 --head heads/lstm
"""
)
@click.option("--config", metavar="JOB.YAML", help="Job file with the same options as keys; a flag beats the file.")
@click.option("--output", metavar="URL", help="Where `featlib extract` wrote to; the vectors go beside the features.")
@click.option("--dataset", metavar="NAME", help="The dataset= partition.")
@click.option("--features", multiple=True, metavar="LABEL", help="A model= partition to read; several are fused.")
@click.option(
    "--label",
    metavar="NEWLABEL",
    help="The partition to write; default FEATURES.POOL, like resnet50.mean, or FEATURES.HEAD.",
)
@click.option("--pool", type=click.Choice(["mean", "max", "mean_std"]), help="Over the rows of a video; default mean.")
@click.option("--fuse", type=click.Choice(["concat", "mean"]), help="Vectors of several partitions; default concat.")
@click.option(
    "--head", metavar="PATH", help="What `featlib train` wrote, folder or file, instead of --pool and --fuse."
)
@click.option("--top-k", type=int, help="Classes that a classifier writes of each video, best first; default 1.")
@click.option("--normalize", is_flag=True, default=None, help="Scale each vector to length 1.")
@click.option("--max-failed", type=float, help="Share of media that may fail or be partial; default 0.05.")
@click.option("--shard-mb", type=int, help="Largest features object; default 512.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@_store_options
def aggregate(as_json: bool, **given: Any) -> None:
    """Makes one vector a video from features of its frames or clips; pixels are not touched. The same command again
    takes up what was extracted since."""
    from featlib.aggregation import aggregate as run
    from featlib.config import AggregateConfig
    from featlib.progress import reporter

    _log_to_stderr()
    _end_with(run(_configured(AggregateConfig, given), reporter=reporter()), as_json)


@cli.command(
    epilog="""\b
Example:
  featlib train --output out --dataset mine --features resnet50 --head lstm --out heads/lstm
  featlib train --output out --dataset mine --features rgb --features flow --head linear --labels labels.csv --out h
  featlib train videos.csv --backbone resnet18 --unfreeze last:3 --out tuned
"""
)
@train_options
@_store_options
def train(as_json: bool, **given: Any) -> None:
    """Trains a head on features and labels: a classifier, or an embedding for comparison. `featlib aggregate --head`
    then writes what it makes of each video. With --backbone it trains a network itself, on the labelled media in
    MANIFEST...; `featlib extract --weights` takes the result."""
    from featlib.progress import reporter
    from featlib.train_options import trainer

    _log_to_stderr()
    run, config = trainer(given)
    _end_with(run(_configured(config, given), reporter=reporter()), as_json)


def _configured(kind: "type[Config]", given: Mapping[str, Any]) -> "Config":
    """The configuration from flags and, under ``config``, a job file; a flag beats the file."""
    from featlib.config import read_job_file, validated

    flags = {k: v for k, v in given.items() if v is not None and v != () and k != "config"}
    file = read_job_file(given["config"], kind) if given.get("config") else {}
    return validated(kind, {**file, **flags})


def _end_with(summary: "Summary | TrainSummary | FinetuneResult", as_json: bool) -> NoReturn:
    """Prints what was done and ends with its exit code."""
    click.echo(json.dumps(summary.to_dict(), indent=2) if as_json else summary.text())
    sys.exit(summary.exit_code)


@cli.command(epilog="\b\nExample:\n  featlib manifest s3://bucket/videos/ -o videos.parquet\n")
@click.argument("url_or_glob")
@click.option("-o", "--out", required=True, metavar="FILE", help="A .parquet, .csv or .jsonl file to write.")
@_store_options
def manifest(url_or_glob: str, out: str, endpoint_url: str | None, anon: bool | None) -> None:
    """Lists the media under a folder, prefix or glob into a manifest."""
    from featlib.manifest import write_manifest
    from featlib.storage import StoreOptions

    count = write_manifest(url_or_glob, out, StoreOptions(endpoint_url, bool(anon)))
    click.echo(f"{count} media in {out}")


@cli.command(
    epilog="""\b
Example:
  featlib models resnet50
  featlib models --json
  featlib models my_networks:tiny --check --weights tiny.pth
"""
)
@click.argument("name", required=False)
@click.option("--check", is_flag=True, help="Hold NAME to the conformance test; exit 3 when it fails.")
@click.option("--weights", metavar="W", help="With --check: as of `featlib extract`; default random:0.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(name: str | None, check: bool, weights: str | None, as_json: bool) -> None:
    """Lists the extractors, or describes NAME (one of them, module:object or timm:NAME): input, frames, feature size,
    weights, parameters, FLOPs."""
    from featlib.extractors import listing, registry

    if check:
        sys.exit(_check(name, weights or "random:0", as_json))
    if weights is not None:
        raise ConfigError(f"--weights {weights}: is for --check; `featlib extract` takes it too")
    if name:
        described = registry.describe(name)
        click.echo(listing.as_json(described) if as_json else listing.as_text(described))
        return
    everything, wrong = listing.all_described()
    click.echo(listing.as_json(everything) if as_json else listing.as_text(everything))
    for problem in wrong:
        click.echo(f"featlib: {problem}", err=True)


def _check(name: str | None, weights: str, as_json: bool) -> int:
    """Prints what the conformance test finds of a network; gives the exit code."""
    from featlib.extractors import listing
    from featlib.extractors.conformance import check

    if name is None:
        raise ConfigError("--check: name the network, like `featlib models my_networks:tiny --check`")
    findings = check(name, weights=weights)
    click.echo(listing.findings_as_json(findings) if as_json else listing.findings_as_text(findings))
    return 3 if any(f.passed is False for f in findings) else 0


@cli.command(epilog="\b\nExample:\n  featlib verify clips/ --output out --dataset mine --model resnet50\n")
@click.argument("manifest", nargs=-1, required=True)
@_partition_options
@click.option("--uri-column", default="uri", show_default=True, help="Column of the manifest that holds the URIs.")
@click.option("--limit", type=int, help="Only the first N media of the manifest.")
@click.option("--max-failed", type=float, default=0.05, show_default=True, help="Share that may be failed or partial.")
@_store_options
def verify(
    manifest: tuple[str, ...],
    output: str,
    dataset: str,
    model: str,
    uri_column: str,
    limit: int | None,
    max_failed: float,
    endpoint_url: str | None,
    anon: bool | None,
) -> None:
    """Holds the shards against the manifest: missing, duplicate, failed, damaged. Exit 0 when complete, else 3."""
    from featlib.layout import Keys
    from featlib.manifest import read_manifest
    from featlib.shards.verify import verify as check
    from featlib.storage import Store, StoreOptions

    options = StoreOptions(endpoint_url, bool(anon))
    # Ids are all that is looked at, so local paths do no harm.
    batches = read_manifest(manifest, uri_column=uri_column, limit=limit, local_media=True, options=options)
    found = check(batches, Store(output, options), Keys(_name(dataset)), _name(model), max_failed=max_failed)
    click.echo(found.text())
    sys.exit(0 if found.complete else 3)


@cli.command(epilog="\b\nExample:\n  featlib drop --output out --dataset mine --model resnet50\n")
@_partition_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@_store_options
def drop(output: str, dataset: str, model: str, yes: bool, endpoint_url: str | None, anon: bool | None) -> None:
    """Removes one partition, its features, outcomes and what is staged for it, after asking. The dataset's plan goes
    with its last partition."""
    from featlib import partition
    from featlib.drivers import Claim
    from featlib.layout import Keys
    from featlib.storage import Store, StoreOptions

    store, keys = Store(output, StoreOptions(endpoint_url, bool(anon))), Keys(_name(dataset))
    if partition.registered(store, keys, _name(model)) is None:
        raise ConfigError(f"{redact(output)}: there is no model={model} of dataset={dataset}; nothing was removed")
    if not yes:
        click.confirm(f"Remove model={model} of dataset={dataset} from {redact(output)}?", abort=True)
    with Claim(store, keys) as claim:
        claim.settle()
        count = partition.drop(store, keys, model, claim.guard, claim.confirm)
    click.echo(f"removed {count} objects")


@cli.command(
    epilog="""\b
Example:
  featlib submit --address http://127.0.0.1:8265 -- extract s3://b/v.csv --output s3://b/out --dataset d --model r3d_18
"""
)
@click.option(
    "--address", metavar="URL", help="Of the cluster's dashboard; default RAY_API_SERVER_ADDRESS, then RAY_ADDRESS."
)
@click.option("--working-dir", metavar="FOLDER", help="Copied to the cluster; the command runs in it.")
@click.option("--no-wait", is_flag=True, help="Do not follow the job.")
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED)
def submit(address: str | None, working_dir: str | None, no_wait: bool, arguments: tuple[str, ...]) -> None:
    """Runs extract, aggregate, train or verify (ARGUMENTS, behind --) as a job of a Ray cluster, follows it and ends
    with its exit code. A cluster that asks nobody for a token is warned of."""
    from featlib import submission

    code = submission.submit(
        submission.dashboard_address(address),
        arguments,
        working_dir=working_dir,
        waits=not no_wait,
        say=lambda line: click.echo(f"featlib: {line}", err=True),
        log=submission.to_stdout,
    )
    sys.exit(code)


def _name(text: str) -> str:
    from featlib.config import check_name

    try:
        return check_name(text)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s featlib: %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("featlib")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; a person's mistake gives one line and exit 2, a job that cannot go on one line and exit 1."""
    try:
        cli.main(args=list(arguments) if arguments is not None else None, prog_name="featlib", standalone_mode=False)
    except click.exceptions.Abort:
        _end("stopped", 1)
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        click.echo(redact(said.getvalue()), err=True, nl=False)
        sys.exit(error.exit_code)
    except ConfigError as error:
        _end(str(error), 2)
    except StoppedError as error:
        _end(str(error), 1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or f"the folder for temporary files ({tempfile.gettempdir()})"
        _end(f"{where}: {error.strerror}; make room there, or set TMPDIR, then run the same command again", 1)


def _end(message: str, code: int) -> None:
    line = _CONTROL.sub("?", " ".join(message.split()))
    click.echo(f"featlib: {line}", err=True)
    sys.exit(code)
