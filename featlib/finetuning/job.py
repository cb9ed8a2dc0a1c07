"""Fine-tuning from end to end: manifest -> split -> pictures -> training -> a folder with weights and numbers."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from featlib.config import ModelConfig, validated
from featlib.errors import ConfigError, StoppedError
from featlib.extractors import registry
from featlib.extractors.mean_volume import ENDING
from featlib.extractors.metadata import WeightsMetadata
from featlib.extractors.resolve import ResolvedModel, resolve
from featlib.extractors.weights import payload, release_payloads
from featlib.faults import in_a_line, is_out_of_memory
from featlib.finetuning.fitting import Evaluation, FitSettings, Indices, LabelledClips, Trainer
from featlib.finetuning.labels import LabelledItem, read_labelled, with_splits
from featlib.finetuning.network import Plan, Trainee, as_safetensors, plan_for, preset_enum, start
from featlib.finetuning.pictures import Pictures, decode_all, picture_file
from featlib.finetuning.result import WEIGHTS_FILE, FinetuneResult, result_folder
from featlib.finetuning.scores import confusion_of, scores
from featlib.heads.figures import NO_PICTURE, curve_csv, curve_png, metrics_json, table_csv, writing_to
from featlib.heads.training import Epoch
from featlib.inference import Normalisation, in_best_format
from featlib.manifest.labels import SPLITS, Split
from featlib.manifest.splits import check_splits
from featlib.media import DecodeProcess, Limits
from featlib.progress import Reporter, SilentReporter
from featlib.storage import StoreOptions
from featlib.train_config import FinetuneConfig

_RECORDED = (*FitSettings.__dataclass_fields__, "unfreeze", "frame_sampling", "clip_sampling", "frames_per_video")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Setup:
    """All that is settled before the first medium is opened."""

    config: FinetuneConfig
    options: StoreOptions
    model: ResolvedModel
    plan: Plan
    items: Sequence[LabelledItem]
    classes: tuple[str, ...]
    device: torch.device


def finetune(config: FinetuneConfig, *, reporter: Reporter | None = None) -> FinetuneResult:
    """Runs the job that ``featlib train --backbone`` runs.

    Raises:
        ConfigError: The configuration or the manifest is wrong; nothing was read from the media.
        StoppedError: Too many media are unusable, there is no room for their pictures, or training does not converge.
    """
    with reporter or SilentReporter() as shown, result_folder(config.out) as folder:
        setup = _set_up(config, shown)
        size = setup.model.input.pixels.crop
        if size is None:
            raise ConfigError(f"--preprocess {config.preprocess}: has no crop; training needs frames of one size")
        with picture_file(size, config.cache_mb) as file:
            shown.stage("decoding")
            began = time.perf_counter()
            with DecodeProcess(Limits(), setup.options) as process:
                pictures = decode_all(
                    [i.item for i in setup.items],
                    setup.model.want,
                    process,
                    file,
                    shown,
                    max_failed=config.max_failed,
                    clips_per_item=config.frames_per_video,
                )
            decode_s = time.perf_counter() - began
            shown.stage(f"{len(pictures.place)} clips, {file.nbytes / 1e6:.0f} MB of pictures in a temporary file")
            with _memory_is_enough(setup.device, config.batch_size):
                return _train(setup, pictures, folder, shown, decode_s)


def _set_up(config: FinetuneConfig, reporter: Reporter) -> _Setup:
    _check_backbone(config.backbone, config.preprocess)
    options = StoreOptions(config.endpoint_url, config.anon)
    reporter.stage("reading weights")
    model = resolve(_model_config(config), options)
    plan = plan_for(model, config.unfreeze, trains_last=config.loss == "cross_entropy")
    device = _device(config)
    reporter.stage("reading the manifest")
    found = read_labelled(
        config.manifest,
        uri_column=config.uri_column,
        limit=config.limit,
        local_media=config.local_media,
        options=options,
    )
    items = with_splits(found, config.validation, config.seed, pairs=config.loss != "cross_entropy")
    classes = _classes(model, items)
    _check_outputs(config, model, classes)
    return _Setup(config, options, model, plan, items, classes, device)


def _check_backbone(name: str, preprocess: str | None) -> None:
    try:
        network = registry.network(name)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--model", "--backbone")) from None
    if network.detects or network.takes("flow"):
        raise ConfigError(f"--backbone {name}: only networks of frames or RGB clips are trained further, like resnet18")
    if preprocess is not None and preprocess.endswith(ENDING):
        raise ConfigError(f"--preprocess {preprocess}: a mean volume cannot be trained with; name a preset")


def _check_outputs(config: FinetuneConfig, model: ResolvedModel, classes: Sequence[str]) -> None:
    """A network that cannot be told its number of classes is a classifier of as many as it has."""
    can_be_told = registry.network(config.backbone).takes_num_classes
    if config.loss == "cross_entropy" and not can_be_told and model.num_classes != len(classes):
        raise ConfigError(
            f"--backbone {config.backbone}: its constructor takes no num_classes and gives {model.num_classes} "
            f"outputs, the labels are {len(classes)} classes; let it take num_classes, or give --loss triplet"
        )


def _model_config(config: FinetuneConfig) -> ModelConfig:
    names = ("weights", "weights_sha256", "preprocess", "frame_sampling", "clip_sampling")
    values = {name: getattr(config, name) for name in names}
    return validated(ModelConfig, {"network": config.backbone, "layer": "penultimate", **values})


def _device(config: FinetuneConfig) -> torch.device:
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise ConfigError("--device cuda: this machine has no GPU that torch can use; give --device cpu")
    return torch.device("cuda" if has_gpu and config.device != "cpu" else "cpu")


def _classes(model: ResolvedModel, items: Sequence[LabelledItem]) -> tuple[str, ...]:
    """The labels by name; in the order of the weights' own outputs when those have the same names."""
    labels = sorted({i.label for i in items})
    return model.categories if _has_classes(model, labels) else tuple(labels)


def _has_classes(model: ResolvedModel, labels: Sequence[str]) -> bool:
    return sorted(model.categories) == sorted(labels)


def _train(setup: _Setup, pictures: Pictures, folder: Path, reporter: Reporter, decode_s: float) -> FinetuneResult:
    _check_left(setup, pictures)
    clips = {split: _clips(setup, pictures, split) for split in SPLITS}
    trainer = _trainer(setup)
    began = time.perf_counter()
    before = scores(trainer.evaluate(clips["val"]), clips["val"], setup.config.loss)
    fit = trainer.fit(clips["train"], clips["val"], _shows(setup, reporter))
    after = trainer.evaluate(clips["val"])
    test = clips["test"]
    result = FinetuneResult(
        out=setup.config.out,
        network=setup.model.network,
        weights=setup.model.weights_source,
        loss=setup.config.loss,
        unfreeze=setup.config.unfreeze,
        classes=setup.classes,
        trained_layers=setup.plan.layers,
        media=_media_counts(setup, pictures),
        fit=fit,
        start=before,
        validation=scores(after, clips["val"], setup.config.loss),
        test=scores(trainer.evaluate(test), test, setup.config.loss) if len(test) else None,
        left_out=tuple(pictures.left_out.values()),
        cache_bytes=pictures.frames.nbytes,
        seconds={"decode": decode_s, "train": time.perf_counter() - began},
    )
    _write(folder, setup, trainer.trainee, result, after, clips["val"])
    return result


def _clips(setup: _Setup, pictures: Pictures, split: Split) -> LabelledClips:
    number = {name: n for n, name in enumerate(setup.classes)}
    labels = np.array([number[i.label] for i in setup.items], dtype=np.int64)
    wanted = np.array([i.split == split for i in setup.items])
    rows = np.flatnonzero(wanted[pictures.place])
    place = pictures.place[rows]
    return LabelledClips(pictures.frames, pictures.frame_idx[rows], labels[place], _video_numbers(setup.items)[place])


def _video_numbers(items: Sequence[LabelledItem]) -> Indices:
    """One number for all parts of a file that are of one class: to find one by another is nothing."""
    numbers: dict[tuple[str, str], int] = {}
    return np.array([numbers.setdefault((i.uri, i.label), len(numbers)) for i in items], dtype=np.int64)


def _check_left(setup: _Setup, pictures: Pictures) -> None:
    """Media that were left out may have been the only ones of a class, or of a split."""
    left = [i for place, i in enumerate(setup.items) if place not in pictures.left_out]
    classifies = setup.config.loss == "cross_entropy"
    missing = sorted(set(setup.classes) - {i.label for i in left if i.split == "train"})
    if classifies and missing:
        raise StoppedError(f"no medium of label {missing[0]!r} in the split train can be used; nothing was trained")
    try:
        check_splits(left, [i.split for i in left], pairs=not classifies)
    except ConfigError as error:
        raise StoppedError(f"without the {len(pictures.left_out)} media that cannot be used: {error}") from None


def _trainer(setup: _Setup) -> Trainer:
    config, model = setup.config, setup.model
    keeps = config.loss != "cross_entropy" or _has_classes(model, setup.classes)
    num_classes = None if keeps else len(setup.classes)
    trainee = start(model, payload(model, setup.options), setup.plan, num_classes=num_classes, seed=config.seed)
    release_payloads()
    in_best_format(trainee.network, model.input, setup.device)
    values = {name: getattr(config, name) for name in FitSettings.__dataclass_fields__}
    return Trainer(trainee, FitSettings(**values), Normalisation(model.input, setup.device), setup.device)


@contextmanager
def _memory_is_enough(device: torch.device, batch_size: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        place = "this machine" if device.type == "cpu" else "the GPU"
        raise StoppedError(
            f"{place} has too little memory ({in_a_line(error)}); give a smaller --batch-size than {batch_size}"
        ) from None


def _shows(setup: _Setup, reporter: Reporter) -> Callable[[int, Epoch], None]:
    def show(number: int, epoch: Epoch) -> None:
        losses = f"train {epoch.train_loss:.4f}, validation {epoch.validation_loss:.4f}"
        reporter.stage(f"epoch {number} of at most {setup.config.epochs}: {losses}")

    return show


def _media_counts(setup: _Setup, pictures: Pictures) -> dict[str, int]:
    used = [i.split for place, i in enumerate(setup.items) if place not in pictures.left_out]
    return {split: used.count(split) for split in SPLITS if split in used}


def _write(
    folder: Path,
    setup: _Setup,
    trainee: Trainee,
    result: FinetuneResult,
    after: Evaluation,
    validation: LabelledClips,
) -> None:
    config = setup.config
    classifies = config.loss == "cross_entropy"
    # An embedding's last layer has not followed the layers in front of it: its classes mean nothing any more.
    metadata = WeightsMetadata(
        network=setup.model.network,
        classes=setup.classes if classifies else (),
        preprocess=preset_enum(setup.model),
        layer="" if classifies else "penultimate",
        settings={name: getattr(config, name) for name in _RECORDED} | {"weights": setup.model.weights_source},
    )
    title = f"{setup.model.network}, {config.loss}"
    files = {
        WEIGHTS_FILE: as_safetensors(trainee, metadata),
        "metrics.json": metrics_json(result.to_dict()),
        "curve.csv": curve_csv(result.fit),
        "curve.png": curve_png(result.fit, title),
    }
    if classifies:
        table = confusion_of(after, validation, len(setup.classes)).tolist()
        rows = [[name, *row] for name, row in zip(setup.classes, table, strict=True)]
        files["confusion.csv"] = table_csv([["label", *setup.classes], *rows])
    with writing_to(config.out):
        for name, data in files.items():
            if data is None:
                log.warning(NO_PICTURE)
            else:
                (folder / name).write_bytes(data)
