"""The ``featlib`` command. Every command is a thin layer over a function of the library."""

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

import featlib
from featlib.errors import ConfigError, StoppedError
from featlib.train_options import train_options

if TYPE_CHECKING:
    from featlib.config import Config
    from featlib.finetuning import FinetuneResult
    from featlib.summary import Summary
    from featlib.training import TrainSummary

_PER_MODEL = (
    "weights",
    "weights_sha256",
    "layer",
    "preprocess",
    "precision",
    "frame_sampling",
    "clip_sampling",
    "batch_size",
    "top_k",
    "categories",
    "flow",
    "flow_weights",
    "fusion",
    "regions",
)
_LISTS = ("manifest", "model", *_PER_MODEL)

Option = Callable[[Callable[..., Any]], Callable[..., Any]]


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
@click.argument("manifest", nargs=-1)
@click.option("--config", metavar="JOB.YAML", help="Job file with the same options as keys; a flag beats the file.")
@click.option("--output", metavar="URL", help="Folder or s3:// URL for the shards.")
@click.option("--dataset", metavar="NAME", help="The dataset= partition.")
@click.option(
    "--model", multiple=True, metavar="[LABEL=]NETWORK", help="A name, module:object or timm:NAME; repeat for more."
)
@click.option(
    "--weights",
    multiple=True,
    metavar="[LABEL=]W",
    help="default, a torchvision enum name, a path or URL of a state dict, or random:SEED.",
)
@click.option(
    "--weights-sha256", multiple=True, metavar="[LABEL=]HEX", help="Refuse a weights file with another SHA-256."
)
@click.option(
    "--layer",
    multiple=True,
    metavar="[LABEL=]L[,L...]",
    help="penultimate, logits, probabilities or a node name; several are partitions LABEL.L from one forward.",
)
@click.option("--top-k", multiple=True, metavar="[LABEL=]K", help="The K most probable classes beside each feature.")
@click.option(
    "--categories", multiple=True, metavar="[LABEL=]NAMES", help="Names of the classes: a weights enum or a text file."
)
@click.option(
    "--flow",
    multiple=True,
    metavar="[LABEL=]F",
    help="Optical flow: tvl1 (default), farneback, dis, raft_large or raft_small.",
)
@click.option("--flow-weights", multiple=True, metavar="[LABEL=]W", help="Of RAFT; as --weights.")
@click.option("--fusion", multiple=True, metavar="[LABEL=]F", help="Of two streams: concat (default), mean or A:B.")
@click.option("--regions", multiple=True, metavar="[LABEL=]R", help="Boxes of a detector: top:K or fixed:K.")
@click.option(
    "--preprocess",
    multiple=True,
    metavar="[LABEL=]ENUM",
    help="A weights enum name whose preset to use; for c3d also its mean volume, MEAN.npy.",
)
@click.option("--precision", multiple=True, metavar="[LABEL=]P", help="fp32, bf16 or fp16.")
@click.option(
    "--frame-sampling",
    multiple=True,
    metavar="[LABEL=]S",
    help="all, every:N, fps:F, uniform:K, random:K or keyframes; default fps:1.",
)
@click.option(
    "--clip-sampling", multiple=True, metavar="[LABEL=]S", help="frames=16,stride=1,hop=16,tail=drop[,fps=15]."
)
@click.option("--batch-size", multiple=True, metavar="[LABEL=]N", help="Frames or clips in one forward.")
@click.option("--uri-column", help="Column of the manifest that holds the URIs; default uri.")
@click.option("--limit", type=int, help="Only the first N media of the manifest.")
@click.option("--local-media", is_flag=True, default=None, help="A manifest in an object store may name local paths.")
@click.option("--max-failed", type=float, help="Share of media that may fail before the exit code is 3; default 0.05.")
@click.option("--retry-failed", is_flag=True, default=None, help="Take failed media up again.")
@click.option("--changed", is_flag=True, default=None, help="Redo media whose size or etag changed since.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Default auto: asks the Ray cluster.")
@click.option("--ray-address", help="A running Ray; default: the one this was submitted to, else Ray starts here.")
@click.option(
    "--layout", type=click.Choice(["auto", "together", "separate"]), help="One pool for all networks, or two."
)
@click.option(
    "--compile",
    type=click.Choice(["auto", "on", "off"]),
    help="Run networks as compiled code on CPUs; default auto: where that saves more time than it costs.",
)
@click.option("--decode-workers", type=int, help="Decode processes; default from the machine.")
@click.option("--extract-workers", type=int, help="Extractor actors in each pool; default from the machine.")
@click.option("--extract-threads", type=int, help="CPU threads of one extractor actor; default from the machine.")
@click.option("--flow-workers", type=int, help="Actors that compute optical flow; default from the machine.")
@click.option("--shard-items", type=int, help="Media in one shard of a new plan; default 256.")
@click.option("--shard-mb", type=int, help="Largest features object; default 512.")
@click.option("--unit-mb", type=int, help="Most megabytes of pixels in one task; default 48.")
@click.option("--unit-items", type=int, help="Most media in one task; default 64.")
@click.option("--decode-memory-mb", type=int, help="Memory that decoding one item may take; default 2048.")
@click.option("--decode-stall-s", type=float, help="Seconds without progress until an item is given up; default 90.")
@click.option("--decode-deadline-s", type=float, help="Seconds for one item in all; default 1800.")
@click.option("--object-store-mb", type=int, help="Ray's shared memory when Ray starts here.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@_store_options
def extract(as_json: bool, **given: Any) -> None:
    """Extracts features of the media in MANIFEST... (Parquet, CSV, JSON Lines, a list of URIs, a media file, a folder
    or prefix, a glob; several of these). The same command again goes on where it stopped."""
    from featlib.config import extract_config
    from featlib.job import extract as run
    from featlib.progress import reporter

    _log_to_stderr()
    _end_with(run(extract_config(job_values(given)), reporter=reporter()), as_json)


def job_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a job from its flags and, under ``config``, its job file; a flag beats the file.

    Raises:
        ConfigError: The job file cannot be read, or a flag names a label that is not a model's.
    """
    from featlib.config import read_job_file

    flags = {k: v for k, v in given.items() if v is not None and v != () and k != "config"}
    values = read_job_file(given["config"]) if given.get("config") else {}
    models = [_model(text) for text in flags.pop("model", ())] or _file_models(values.get("models"))
    for name in _PER_MODEL:
        for text in flags.pop(name, ()):
            _set(models, name, text)
    return {**values, **flags, **({"models": models} if models else {})}


def _file_models(models: Any) -> list[dict[str, Any]]:
    if models is None:
        return []
    if not isinstance(models, list) or not all(isinstance(m, dict) for m in models):
        raise ConfigError("models: must be a list of mappings, like `- network: resnet50`")
    return [dict(m) for m in models]


def _model(text: str) -> dict[str, Any]:
    label, equals, network = text.partition("=")
    return {"label": label, "network": network} if equals else {"network": text}


def _set(models: Sequence[dict[str, Any]], name: str, text: str) -> None:
    """Applies ``VALUE`` to all models or ``LABEL=VALUE`` to one; a sampling for all goes to those it fits."""
    from featlib.config import default_label

    left, equals, right = text.partition("=")
    labels = [m.get("label") or default_label(str(m.get("network"))) for m in models]
    if equals and left in labels:
        models[labels.index(left)][name] = right
        return
    if equals and _looks_like_label(left):
        known = ", ".join(map(str, labels))
        raise ConfigError(f"--{name.replace('_', '-')} {text}: {left!r} is not the label of a model ({known})")
    for model in models:
        if _fits(model, name, alone=len(models) == 1):
            model[name] = text


def _looks_like_label(text: str) -> bool:
    from featlib.config import check_name
    from featlib.spec import CLIP_KEYS

    try:
        return text not in CLIP_KEYS and bool(check_name(text))
    except ValueError:
        return False


def _fits(model: Mapping[str, Any], name: str, *, alone: bool) -> bool:
    """Whether a setting that was given for all means something to this model's network."""
    if alone:
        return True
    from featlib.extractors import registry

    # A model without a network is refused when the job is validated.
    return "network" not in model or registry.network(str(model["network"])).takes(name)


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
@click.option("--max-failed", type=float, help="Share of media that may fail; default 0.05.")
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
@click.option("--max-failed", type=float, default=0.05, show_default=True, help="Share of media that may fail.")
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
    """Removes one partition with its plan and outcomes, after asking."""
    from featlib import partition
    from featlib.drivers import Claim
    from featlib.layout import Keys
    from featlib.storage import Store, StoreOptions

    store, keys = Store(output, StoreOptions(endpoint_url, bool(anon))), Keys(_name(dataset))
    if partition.registered(store, keys, _name(model)) is None:
        raise ConfigError(f"{output}: there is no model={model} of dataset={dataset}; nothing was removed")
    if not yes:
        click.confirm(f"Remove model={model} of dataset={dataset} from {output}?", abort=True)
    with Claim(store, keys) as claim:
        claim.settle()
        count = partition.drop(store, keys, model)
    click.echo(f"removed {count} objects")


@cli.command(
    epilog="""\b
Example:
  featlib submit --address http://127.0.0.1:8265 -- extract s3://b/v.csv --output s3://b/out --dataset d --model r3d_18
"""
)
@click.option("--address", metavar="URL", help="Of the cluster's dashboard; default RAY_API_SERVER_ADDRESS.")
@click.option("--working-dir", metavar="FOLDER", help="Copied to the cluster; the command runs in it.")
@click.option("--no-wait", is_flag=True, help="Do not follow the job.")
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED)
def submit(address: str | None, working_dir: str | None, no_wait: bool, arguments: tuple[str, ...]) -> None:
    """Runs a featlib command (ARGUMENTS, behind --) as a job of a Ray cluster, follows it and ends with its exit code.
    A cluster that asks nobody for a token is warned of."""
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
        error.show()
        sys.exit(error.exit_code)
    except ConfigError as error:
        _end(str(error), 2)
    except StoppedError as error:
        _end(str(error), 1)


def _end(message: str, code: int) -> None:
    click.echo(f"featlib: {' '.join(message.split())}", err=True)
    sys.exit(code)
