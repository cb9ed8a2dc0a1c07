"""The whole job on a handful of pictures: what it writes, what it changes, what it refuses."""

import csv
import errno
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from featlib.config import ExtractConfig, ModelConfig, validated
from featlib.errors import ConfigError, FeatlibError, StoppedError
from featlib.extractors.metadata import WeightsMetadata
from featlib.extractors.resolve import resolve
from featlib.extractors.weights import payload
from featlib.finetuning import FinetuneResult, finetune, job
from featlib.media import DecodeProcess, Limits
from featlib.progress import SilentReporter
from featlib.storage import StoreOptions
from featlib.train_config import FinetuneConfig
from tests.finetuning.make import moving_bar, write_manifest, write_pictures, write_video

OPTIONS = StoreOptions()
NETWORK = "shufflenet_v2_x0_5"
CLASSES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Six pictures of each of three classes."""
    return write_pictures(tmp_path_factory.mktemp("pictures"), 6, CLASSES, seed=0)


def run(folder: Path, rows: list[dict[str, str]], **settings: Any) -> FinetuneResult:
    folder.mkdir(exist_ok=True)
    values = {"backbone": NETWORK, "weights": "random:0", "epochs": 1, "batch_size": 6, "validation": 0.34}
    manifest = write_manifest(folder / "manifest.csv", rows)
    out = str(folder / "out")
    return finetune(validated(FinetuneConfig, {"manifest": manifest, "out": out, **values, **settings}))


def tensors(result: FinetuneResult) -> dict[str, Tensor]:
    return safetensors.torch.load_file(f"{result.out}/weights.safetensors")


def before() -> dict[str, Tensor]:
    resolved = resolve(ModelConfig.model_validate({"network": NETWORK, "weights": "random:0"}), OPTIONS)
    return safetensors.torch.load(payload(resolved, OPTIONS))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> FinetuneResult:
    """All layers trained, in steps that are too large to be any good."""
    return run(tmp_path_factory.mktemp("trained"), rows, epochs=2, learning_rate=0.1, flip=True)


def test_a_file_of_weights_is_held_to_its_sha256(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"no weights at all")
    pin = "ab" * 32
    with pytest.raises(ConfigError, match=rf"has the SHA-256 [0-9a-f]{{64}}, not {pin} as --weights-sha256 asks"):
        run(tmp_path / "a", rows, weights=str(path), weights_sha256=pin.upper())
    safetensors.torch.save_file(before(), path)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert run(tmp_path / "b", rows, weights=str(path), weights_sha256=right).weights == str(path)


def test_the_folder_and_its_numbers(result: FinetuneResult) -> None:
    out = Path(result.out)
    assert {p.name for p in out.iterdir()} == {
        *("weights.safetensors", "metrics.json", "confusion.csv", "curve.csv", "curve.png")
    }
    assert result.classes == ("blue", "green", "red")
    assert result.media == {"train": 12, "val": 6}
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(result.to_dict()))
    lines = list(csv.reader((out / "confusion.csv").open()))
    assert lines[0] == ["label", "blue", "green", "red"]
    table = np.array([line[1:] for line in lines[1:]], int)
    assert table.sum(1).tolist() == [2, 2, 2]
    assert table.trace() / 6 == result.validation["top_1"]
    curve = list(csv.DictReader((out / "curve.csv").open()))
    assert [float(line["validation_loss"]) for line in curve] == [e.validation_loss for e in result.fit.curve]
    with Image.open(out / "curve.png") as picture:
        assert picture.width > 300
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    assert f"{result.out}/weights.safetensors" in result.text()
    assert "3 classes, 12 train, 6 val\n" in result.text()


def test_extract_takes_the_file_as_it_is(result: FinetuneResult) -> None:
    config = {"network": NETWORK, "weights": f"{result.out}/weights.safetensors", "layer": "probabilities"}
    resolved = resolve(ModelConfig.model_validate(config), OPTIONS)
    assert resolved.categories == ("blue", "green", "red")
    assert resolved.feature_shape == (3,)
    assert "categories" not in resolved.semantics()


def test_the_last_layer_alone(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    result = run(tmp_path, rows, unfreeze="last:1", learning_rate=0.1)
    assert result.trained_layers == ("fc",)
    after, old = tensors(result), before()
    assert after.keys() == old.keys()
    assert after["fc.weight"].shape == (3, 1024)
    for name, tensor in old.items():
        if not name.startswith("fc."):
            assert torch.equal(after[name], tensor), name


def test_all_layers(result: FinetuneResult) -> None:
    after, old = tensors(result), before()
    same = [name for name, tensor in old.items() if not name.startswith("fc.") and torch.equal(after[name], tensor)]
    assert same == []
    assert len(result.trained_layers) == 113


def test_an_embedding_leaves_the_last_layer_and_names_no_classes(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    result = run(tmp_path, rows, loss="triplet", learning_rate=0.01)
    after, old = tensors(result), before()
    assert torch.equal(after["fc.weight"], old["fc.weight"])
    assert not torch.equal(after["conv5.0.weight"], old["conv5.0.weight"])
    assert set(result.validation) == {"loss", "clips", "videos", "recall_at_1"}
    assert not (Path(result.out) / "confusion.csv").exists()
    config = {"network": NETWORK, "weights": f"{result.out}/weights.safetensors"}
    resolved = resolve(ModelConfig.model_validate(config), OPTIONS)
    assert (resolved.categories, resolved.layer) == ((), "penultimate")


OWN = "tests.finetuning.make:bars"


def bar_rows(folder: Path, classes: str) -> list[dict[str, str]]:
    random = np.random.default_rng(0)
    names = [classes[i % len(classes)] for i in range(4 * len(classes))]
    paths = [write_video(folder / f"{i}.avi", moving_bar(True, random)) for i in range(len(names))]
    half = len(names) // 2
    return [
        {"uri": str(p), "label": name, "split": ("train", "val")[i >= half]}
        for i, (p, name) in enumerate(zip(paths, names, strict=True))
    ]


@pytest.mark.parametrize("loss", ["cross_entropy", "triplet"])
def test_a_network_that_cannot_be_told_its_classes(tmp_path: Path, loss: str) -> None:
    """Its own feature is an early layer, but an embedding is what was trained; it has three outputs."""
    result = run(tmp_path, bar_rows(tmp_path, "abc"), backbone=OWN, loss=loss, learning_rate=0.01)
    config = {"network": OWN, "weights": f"{result.out}/weights.safetensors"}
    resolved = resolve(ModelConfig.model_validate(config), OPTIONS)
    assert resolved.layer == ("early" if loss == "cross_entropy" else "penultimate")
    assert resolved.categories == (("a", "b", "c") if loss == "cross_entropy" else ())
    chosen = resolve(ModelConfig.model_validate({**config, "layer": "logits"}), OPTIONS)
    assert chosen.layer == "logits"


def test_more_classes_than_a_network_can_have(tmp_path: Path) -> None:
    (tmp_path / "bars").mkdir()
    rows = bar_rows(tmp_path / "bars", "abcd")
    said = refused(tmp_path / "job", rows, backbone=OWN)
    assert said.startswith(f"ConfigError: --backbone {OWN}: its constructor takes no num_classes and gives 3 outputs, ")


@pytest.mark.long
def test_the_same_seed_gives_the_same_file(tmp_path: Path, rows: list[dict[str, str]], result: FinetuneResult) -> None:
    settings = {"epochs": 2, "learning_rate": 0.1, "flip": True}
    same, other = run(tmp_path / "0", rows, **settings), run(tmp_path / "1", rows, seed=1, **settings)
    files = [(Path(r.out) / "weights.safetensors").read_bytes() for r in (result, same, other)]
    assert files[0] == files[1] != files[2]
    assert result.fit == same.fit


def test_weights_with_the_same_classes_keep_their_last_layer(
    tmp_path: Path, rows: list[dict[str, str]], result: FinetuneResult
) -> None:
    """A further step of nothing leaves it and the order of its outputs as they were; other names make a new one."""
    weights = str(tmp_path / "turned.safetensors")
    metadata = WeightsMetadata(NETWORK, ("red", "blue", "green"), "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1")
    safetensors.torch.save_file(tensors(result), weights, metadata=metadata.to_safetensors())
    settings = {"unfreeze": "last:1", "learning_rate": 1e-30, "weight_decay": 0.0, "seed": 5, "weights": weights}
    again = run(tmp_path / "again", rows, **settings)
    assert again.classes == ("red", "blue", "green")
    assert torch.equal(tensors(again)["fc.weight"], tensors(result)["fc.weight"])
    other = [{**row, "label": row["label"].replace("red", "rot")} for row in rows]
    new = run(tmp_path / "new", other, **settings)
    assert new.classes == ("blue", "green", "rot")
    assert not torch.equal(tensors(new)["fc.weight"], tensors(result)["fc.weight"])


def test_clips_of_a_network_of_clips(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = []
    for i, split in enumerate(("train", "train", "validation")):
        path = write_video(tmp_path / f"{i}.avi", moving_bar(True, random, frames=16))
        rows.append({"uri": str(path), "label": "ab"[i % 2], "split": split})
    settings = {"clip_sampling": "frames=8,hop=4", "unfreeze": "last:1", "frames_per_video": 2, "batch_size": 4}
    result = run(tmp_path, rows, backbone="factorised3d", **settings)
    assert (result.validation["clips"], result.validation["videos"]) == (2, 1)
    assert result.trained_layers == ("fc",)
    assert result.cache_bytes <= 3 * 16 * 112 * 112 * 3


def test_bad_media_are_left_out_and_listed(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    result = run(tmp_path, [*rows, {"uri": str(bad), "label": "red"}], max_failed=0.1)
    assert sum(result.media.values()) == len(rows)
    assert [m["class"] for m in result.to_dict()["left_out"]] == ["unknown_format"]
    assert f"{bad}: unknown_format: " in result.text()


def test_media_are_read_with_the_patience_of_extract(
    tmp_path: Path, rows: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that waits longer takes a store that is away for damage of the medium."""
    given: list[tuple[Limits, StoreOptions]] = []

    def start(limits: Limits, options: StoreOptions) -> DecodeProcess:
        given.append((limits, options))
        return DecodeProcess(limits, options)

    monkeypatch.setattr(job, "DecodeProcess", start)
    run(tmp_path, rows, unfreeze="last:1")
    ((limits, options),) = given
    assert limits.stall_s == ExtractConfig.model_fields["decode_stall_s"].default
    assert options.deadline_s == StoreOptions().deadline_s


def test_parts_of_one_file_are_one_video(tmp_path: Path) -> None:
    """Four files of two parts each: to find one part by the other would be to find a video by itself."""
    random = np.random.default_rng(0)
    rows = []
    for i in range(8):
        path = write_video(tmp_path / f"{i}.avi", moving_bar(True, random, frames=8))
        parts = [{"start_s": "0", "end_s": "0.4"}, {"start_s": "0.4", "end_s": "0.8"}]
        rows += [{"uri": str(path), "label": "ab"[i % 2], "split": ("train", "val")[i // 4], **part} for part in parts]
    result = run(tmp_path, rows, loss="contrastive", unfreeze="last:1", frame_sampling="all")
    assert (result.validation["clips"], result.validation["videos"]) == (32, 4)
    assert result.media == {"train": 8, "val": 8}


def refused(folder: Path, rows: list[dict[str, str]], **settings: Any) -> str:
    with pytest.raises(FeatlibError) as caught:
        run(folder, rows, **settings)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(folder)) == ["manifest.csv"]  # nothing was written, not even in part
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unfreeze": "last:0"}, "ConfigError: unfreeze: must be all or last:N with N at least 1"),
        ({"unfreeze": "head"}, "ConfigError: unfreeze: must be all or last:N with N at least 1"),
        ({"unfreeze": "last:114"}, "ConfigError: --unfreeze last:114: shufflenet_v2_x0_5 has 113 learned layers"),
        ({"backbone": "shufflenet"}, "ConfigError: --backbone shufflenet: no such network; did you mean shufflenet_v2"),
        ({"loss": "hinge"}, "ConfigError: loss: Input should be 'cross_entropy', 'contrastive' or 'triplet'"),
        ({"clip_sampling": "frames=8"}, "ConfigError: --clip-sampling shufflenet_v2_x0_5=frames=8"),
        ({"out": "s3://bucket/out"}, "ConfigError: --out s3://bucket/out: must be a local folder"),
        ({"weights": "random:x"}, "ConfigError: --weights random:x: the seed must be a whole number"),
        ({"preprocess": "mean.npy"}, "ConfigError: --preprocess mean.npy: a mean volume cannot be trained with"),
        ({"cache_mb": 1}, "StoppedError: the decoded pictures take more than the 1 MB"),
        ({"batch_size": 1}, "ConfigError: batch_size: Input should be greater than or equal to 2"),
    ],
)
def test_refusals(tmp_path: Path, rows: list[dict[str, str]], settings: dict[str, Any], message: str) -> None:
    assert message in refused(tmp_path, rows, **settings)


def test_refused_rows(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    assert "no row has a label" in refused(tmp_path, [{"uri": row["uri"]} for row in rows])
    assert "the only label is 'red'" in refused(tmp_path, rows[:6])
    assert "row 1: label is empty" in refused(tmp_path, [{**rows[0], "label": ""}, *rows[1:]])
    missing = [*rows, {"uri": "/no/such.png", "label": "red"}]
    alone = [{**row, "split": "val" if i % 6 == 5 else "train"} for i, row in enumerate(rows)]
    assert "no class has two videos in val" in refused(tmp_path, alone, loss="triplet")
    assert "1 of 19 media cannot be used, more than max_failed 0.05" in refused(tmp_path, missing)
    lost = [*rows, {"uri": "/no/such.png", "label": "violet"}]
    assert "no medium of label 'violet' in the split train can be used" in refused(tmp_path, lost, max_failed=0.5)


def test_a_folder_that_is_there_already_is_not_touched(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="is there already; give another folder or remove it"):
        run(tmp_path, rows)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_no_picture_of_the_curve_without_matplotlib(
    tmp_path: Path, rows: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level("WARNING"):
        run(tmp_path, rows)
    assert "matplotlib is not there; pip install 'featlib[train]' brings it" in caplog.text
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"weights.safetensors", "metrics.json", "curve.csv", "confusion.csv"}


def test_nothing_is_written_when_training_breaks_off(
    tmp_path: Path, rows: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> bytes:
        raise StoppedError("no ink")

    monkeypatch.setattr(job, "curve_png", fails)
    assert "no ink" in refused(tmp_path, rows)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        MemoryError(),
        torch.OutOfMemoryError("full"),
    ],
)
def test_too_little_memory_is_said_in_one_line(
    tmp_path: Path, rows: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*args: object) -> object:
        raise error

    monkeypatch.setattr(job.Trainer, "fit", fails)
    said = refused(tmp_path, rows)
    assert said.startswith("StoppedError: this machine has too little memory (")
    assert said.endswith("); give a smaller --batch-size than 6")


def test_a_disk_that_is_full_is_said_in_one_line(
    tmp_path: Path, rows: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    said = refused(tmp_path, rows)
    assert said == f"StoppedError: --out {tmp_path}/out: cannot be written (No space left on device)"


def test_each_step_is_told(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    told: list[str] = []

    class Listener(SilentReporter):
        def stage(self, text: str) -> None:
            told.append(text)

        def advance(self, items: int, clips: int, failed: int) -> None:
            told.append(f"{items} {clips} {failed}")

    manifest = write_manifest(tmp_path / "m.csv", rows)
    values = {"backbone": NETWORK, "weights": "random:0", "epochs": 1, "validation": 0.34}
    finetune(FinetuneConfig(manifest=(manifest,), out=str(tmp_path / "out"), **values), reporter=Listener())
    assert told[:3] == ["reading weights", "reading the manifest", "decoding"]
    assert told[3:21] == ["1 1 0"] * 18
    assert told[21] == "18 clips, 3 MB of pictures in a temporary file"
    assert told[22].startswith("epoch 1 of at most 1: train ")
