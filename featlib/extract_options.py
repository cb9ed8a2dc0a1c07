"""The options of ``featlib extract``, and the job that they and a job file ask for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from featlib.errors import ConfigError

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
    "flow_weights_sha256",
    "fusion",
    "regions",
)
_OPTIONS = (
    click.option(
        "--config",
        metavar="JOB.YAML",
        help="Job file: options as keys, those of models under models:; a flag beats it.",
    ),
    click.option("--output", metavar="URL", help="Folder or s3:// URL for the shards."),
    click.option("--dataset", metavar="NAME", help="The dataset= partition."),
    click.option(
        "--model", multiple=True, metavar="[LABEL=]NETWORK", help="A name, module:object or timm:NAME; repeat for more."
    ),
    click.option(
        "--weights",
        multiple=True,
        metavar="[LABEL=]W",
        help="default, a torchvision enum name, a path or URL of a state dict, or random:SEED; of crop: models W+W.",
    ),
    click.option(
        "--weights-sha256", multiple=True, metavar="[LABEL=]HEX", help="Refuse a weights file with another SHA-256."
    ),
    click.option(
        "--layer",
        multiple=True,
        metavar="[LABEL=]L[,L...]",
        help="penultimate, logits, probabilities or a node; default the network's own; several are partitions LABEL.L.",
    ),
    click.option(
        "--top-k", multiple=True, metavar="[LABEL=]K", help="The K most probable classes beside each feature."
    ),
    click.option(
        "--categories",
        multiple=True,
        metavar="[LABEL=]NAMES",
        help="Names of the classes: a weights enum or a text file.",
    ),
    click.option(
        "--flow",
        multiple=True,
        metavar="[LABEL=]F",
        help="Optical flow: tvl1 (default), farneback, dis, raft_large or raft_small.",
    ),
    click.option("--flow-weights", multiple=True, metavar="[LABEL=]W", help="Of RAFT; as --weights."),
    click.option(
        "--flow-weights-sha256",
        multiple=True,
        metavar="[LABEL=]HEX",
        help="Of the weights of RAFT; as --weights-sha256.",
    ),
    click.option("--fusion", multiple=True, metavar="[LABEL=]F", help="Of two streams: concat (default), mean or A:B."),
    click.option("--regions", multiple=True, metavar="[LABEL=]R", help="Boxes of a detector: top:K or fixed:K."),
    click.option(
        "--preprocess",
        multiple=True,
        metavar="[LABEL=]ENUM",
        help="A weights enum name whose preset to use; for c3d also its mean volume, MEAN.npy.",
    ),
    click.option("--precision", multiple=True, metavar="[LABEL=]P", help="fp32 (default), bf16 or fp16."),
    click.option(
        "--frame-sampling",
        multiple=True,
        metavar="[LABEL=]S",
        help="all, every:N, fps:F, uniform:K, random:K or keyframes; default fps:1.",
    ),
    click.option(
        "--clip-sampling",
        multiple=True,
        metavar="[LABEL=]S",
        help="Like frames=16,stride=1,hop=16,tail=drop[,fps=15]; what is left out is the network's own.",
    ),
    click.option("--batch-size", multiple=True, metavar="[LABEL=]N", help="Frames or clips in one forward."),
    click.option("--uri-column", help="Column of the manifest that holds the URIs; default uri."),
    click.option("--limit", type=int, help="Only the first N media of the manifest."),
    click.option(
        "--local-media", is_flag=True, default=None, help="A manifest in an object store may name local paths."
    ),
    click.option(
        "--max-failed",
        type=float,
        help="Share of media that may be failed or partial before the exit code is 3; default 0.05.",
    ),
    click.option("--retry-failed", is_flag=True, default=None, help="Take failed media up again."),
    click.option(
        "--changed", is_flag=True, default=None, help="Redo media whose size or etag changed since they were read."
    ),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Default auto: asks the Ray cluster."),
    click.option("--ray-address", help="A running Ray; default: the one this was submitted to, else Ray starts here."),
    click.option(
        "--layout",
        type=click.Choice(["auto", "together", "separate"]),
        help="One pool for all networks, or one for those of frames and one for those of clips; default auto.",
    ),
    click.option(
        "--compile",
        type=click.Choice(["auto", "on", "off"]),
        help="Run networks as compiled code on CPUs; default auto: where that saves more time than it costs.",
    ),
    click.option("--decode-workers", type=int, help="Decode processes; default from the machine."),
    click.option("--extract-workers", type=int, help="Extractor actors in each pool; default from the machine."),
    click.option("--extract-threads", type=int, help="CPU threads of one extractor actor; default from the machine."),
    click.option("--flow-workers", type=int, help="Actors that compute optical flow; default from the machine."),
    click.option("--shard-items", type=int, help="Media in one shard of a new plan; default 256."),
    click.option("--shard-mb", type=int, help="Largest features object; default 512."),
    click.option("--unit-mb", type=int, help="Most megabytes of pixels in one task; default 48."),
    click.option("--unit-items", type=int, help="Most media in one task; default 64, in very large jobs up to 256."),
    click.option("--decode-memory-mb", type=int, help="Memory that decoding one item may take; default 2048."),
    click.option(
        "--decode-stall-s", type=float, help="Seconds without progress until an item is given up; default 90."
    ),
    click.option("--decode-deadline-s", type=float, help="Seconds for one item in all; default 1800."),
    click.option("--object-store-mb", type=int, help="Ray's shared memory when Ray starts here."),
    click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON."),
)


def extract_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the arguments and options of ``featlib extract``."""
    function = click.argument("manifest", nargs=-1)(function)
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


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
    from featlib.sampling import CLIP_KEYS

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
