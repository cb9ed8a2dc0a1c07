"""Fits a head on features that were published before: reads shards and labels, writes one folder."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

import featlib
from featlib.aggregation.sources import Source, open_sources
from featlib.config import POOLED_HEADS
from featlib.errors import ConfigError
from featlib.heads.figures import NO_PICTURE, curve_csv, curve_png, metrics_json, writing_to
from featlib.heads.pooling import Floats
from featlib.heads.saved import HEAD_FILE, HeadSpec, Stream, build, from_bytes, to_bytes
from featlib.heads.training import TrainSettings, Videos, fit
from featlib.layout import Keys
from featlib.manifest.labels import Split, read_labels
from featlib.manifest.splits import Labelled
from featlib.progress import Reporter, SilentReporter
from featlib.redaction import redact
from featlib.storage import Store, StoreOptions, write_file
from featlib.train_config import TrainConfig
from featlib.training.labels import labels_of_file, labels_of_manifest, split_media
from featlib.training.media import Media, check_memory, read_features, read_media
from featlib.training.report import Evaluation, TrainSummary, confusion_csv, evaluate

_PROBE = ".featlib-probe"

Parts = Mapping[Split, Sequence[Labelled]]


def train(config: TrainConfig, *, reporter: Reporter | None = None) -> TrainSummary:
    """Runs the job that ``featlib train`` runs on features.

    What the head reads of all labelled videos is held in memory: one vector a video for heads on the mean, else every
    step. ``head.safetensors`` is written last: where it is, everything beside it is complete.

    Raises:
        ConfigError: There is no such partition, nothing to learn from, not enough memory, or no place to write to;
            nothing was written.
        StoppedError: The training does not converge; a store does not answer, or has no space left.
    """
    options = StoreOptions(config.endpoint_url, config.anon)
    store, keys = Store(config.output, options), Keys(config.dataset)
    out = Store(config.out, options)
    pooled = config.head in POOLED_HEADS
    _check_place(out)
    with reporter or SilentReporter() as shown:
        sources = open_sources(store, keys, config.features)
        _check_sizes(config, sources)
        shown.stage("reading labels")
        media = read_media(store, keys, config.features)
        parts, notes = _parts(config, media, options)
        used = [media[m.media_id] for part in parts.values() for m in part]
        check_memory(used, sources, pooled=pooled, batch_size=config.batch_size, memory_mb=config.memory_mb)
        shown.stage("reading features")
        wanted = {m.media_id for part in parts.values() for m in part}
        steps = read_features(store, keys, sources, wanted, config.fuse, pooled=pooled, shown=shown)
        classes = tuple(sorted({m.label for part in parts.values() for m in part}))
        videos = {name: _videos(part, steps, classes) for name, part in parts.items()}
        shown.stage(f"training on {len(videos['train'])} videos")
        summary, files = _trained(config, sources, classes, videos, notes)
        _write(out, files, options)
        return summary


def _check_place(out: Store) -> None:
    """Finds out whether there can be files at ``out`` before the work is done; leaves nothing there."""
    if not out.is_local:
        out.put(_PROBE, b"")
        out.delete([_PROBE])
        return
    there = out.url
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        raise ConfigError(f"--out {out.url}: {there} is no folder; give another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"--out {out.url}: {there} may not be written to; change its rights or give another place")


def _check_sizes(config: TrainConfig, sources: Sequence[Source]) -> None:
    empty = next((s.label for s in sources if s.size is None), None)
    if empty is not None:
        raise ConfigError(f"--features {empty}: has no rows yet; extract it first")
    sizes = {s.size for s in sources}
    if config.fuse == "mean" and len(sizes) > 1:
        raise ConfigError(
            f"--fuse mean: needs features of one size, these have {sorted(s for s in sizes if s)}; use concat"
        )


def _parts(config: TrainConfig, media: Mapping[str, Media], options: StoreOptions) -> tuple[Parts, list[str]]:
    """The labelled media by split, and what is to be said of those left out."""
    notes = []
    if config.labels is None:
        labelled = labels_of_manifest(media)
    else:
        labelled, unknown = labels_of_file(read_labels(config.labels, options), media)
        if unknown:
            notes.append(f"{unknown} rows of --labels name media that are not in the dataset")
    if not labelled:
        where = "the manifest" if config.labels is None else f"--labels {redact(config.labels)}"
        raise ConfigError(
            f"label: {where} has none for the {len(media)} media of model={config.features[0]}; give a file with "
            "media_id or uri, and label (--labels FILE)"
        )
    usable = [m for m in labelled if media[m.media_id].num_rows]
    if len(usable) < len(labelled):
        notes.append(f"{len(labelled) - len(usable)} labelled media have no features in every partition: left out")
    pairs = config.loss != "cross_entropy"
    return split_media(usable, share=config.validation, seed=config.seed, pairs=pairs), notes


def _videos(part: Sequence[Labelled], steps: Mapping[str, Floats], classes: Sequence[str]) -> Videos:
    number = {label: i for i, label in enumerate(classes)}
    return Videos([steps[m.media_id] for m in part], np.array([number[m.label] for m in part], dtype=np.int64))


def _trained(
    config: TrainConfig,
    sources: Sequence[Source],
    classes: tuple[str, ...],
    videos: Mapping[Split, Videos],
    notes: Sequence[str],
) -> tuple[TrainSummary, dict[str, bytes | None]]:
    """The head, fitted, and the files that are written of it, by name; None for one that is not written."""
    spec = _spec(config, sources, classes)
    settings = TrainSettings(
        config.loss,
        config.epochs,
        config.batch_size,
        config.learning_rate,
        config.weight_decay,
        config.patience,
        config.seed,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = build(spec)
    done = fit(module, videos["train"], videos["val"], settings)
    title = f"{config.head} on {' + '.join(config.features)} of dataset {config.dataset}"
    picture = curve_png(done, title)
    data = to_bytes(spec.model_copy(update={"settings": {**spec.settings, "best_epoch": done.best + 1}}), module)
    head = from_bytes(data, HEAD_FILE)
    evaluations: dict[str, Evaluation] = {
        name: evaluate(head.module, part, len(classes)) for name, part in videos.items()
    }
    notes = [*notes, *([] if picture else [NO_PICTURE])]
    where = f"{redact(config.out).rstrip('/')}/{HEAD_FILE}"
    summary = TrainSummary(title, where, head.sha256, classes, done, evaluations, tuple(notes))
    return summary, {
        "curve.csv": curve_csv(done),
        "curve.png": picture,
        "confusion.csv": confusion_csv(evaluations, classes),
        "metrics.json": metrics_json(summary.to_dict()),
        HEAD_FILE: data,
    }


def _spec(config: TrainConfig, sources: Sequence[Source], classes: tuple[str, ...]) -> HeadSpec:
    own = {"head", "gated", "hidden", "layers", "embedding_size", "fuse", "loss", "seed"}
    training = {"epochs", "batch_size", "learning_rate", "weight_decay", "patience", "validation"}
    streams = [Stream(label=s.label, fingerprint=s.fingerprint, shape=s.shape, size=s.size or 0) for s in sources]
    return HeadSpec(
        **config.model_dump(include=own),
        features=tuple(streams),
        classes=classes,
        settings=config.model_dump(include=training),
        featlib=featlib.__version__,
    )


def _write(out: Store, files: Mapping[str, bytes | None], options: StoreOptions) -> None:
    """Each file whole or not at all, in this order; what an earlier training left of one that is None goes.

    An earlier head goes first of all: it would stand beside the figures of this one.
    """
    out.delete([HEAD_FILE])
    with writing_to(out.url), TemporaryDirectory(prefix="featlib-") as folder:
        for name, data in files.items():
            if data is None:
                out.delete([name])
                continue
            path = Path(folder, name)
            path.write_bytes(data)
            write_file(f"{out.url.rstrip('/')}/{name}", path, options)
