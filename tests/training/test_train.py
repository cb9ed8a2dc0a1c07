"""``featlib train`` from end to end over published shards: real training, and what it leaves behind."""

import csv
import errno
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

import featlib
from featlib.cli import main
from featlib.config import fingerprint
from featlib.errors import ConfigError, StoppedError
from featlib.heads.saved import build, from_bytes, read_head
from featlib.heads.training import Videos, padded
from featlib.storage import StoreOptions
from featlib.train_config import TrainConfig
from tests.heads.videos import many_classes, moving, points
from tests.training.make import Floats, Manifest, config, of_videos, output

FAST = {"hidden": 32, "epochs": 60, "learning_rate": 5e-3}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints; it must end with 0."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    return out


def metrics(folder: Path, name: str = "head") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name / "metrics.json").read_text())
    return found


def test_the_order_of_frames_through_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Forward against backward: a head on the mean stays at chance, an LSTM does not; its partition says the same."""
    parts = {"train": moving(200, 0), "val": moving(60, 100), "test": moving(200, 200)}
    features, manifest = of_videos(parts, ["forward", "backward"])
    output(tmp_path, {"a": features}, manifest, shard_items=150)
    common = ("--output", str(tmp_path), "--dataset", "d", "--features", "a")
    fast = ("--epochs", "60", "--learning-rate", "0.005")
    for kind, sizes in (("linear", ()), ("lstm", ("--hidden", "32"))):
        run(capsys, "train", *common, "--head", kind, *sizes, *fast, "--out", str(tmp_path / kind))
    assert 0.4 <= metrics(tmp_path, "linear")["splits"]["test"]["top_1"] <= 0.6
    reached = metrics(tmp_path, "lstm")["splits"]["test"]
    assert reached["top_1"] >= 0.95
    assert reached["videos"] == 200

    run(capsys, "aggregate", *common, "--head", str(tmp_path / "lstm"))
    rows = featlib.open_features(str(tmp_path), dataset="d", model="a.lstm").to_pandas().set_index("media_id")
    assert len(rows) == len(features)
    right = [rows.labels[i][0] == manifest.labels[i] for i in rows.index if manifest.splits[i] == "test"]
    assert np.mean(right) == reached["top_1"]
    assert rows.probabilities.map(lambda p: 0.5 <= p[0] <= 1).all()


def test_the_printed_table_and_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features, manifest = of_videos({"train": points(40, 0), "val": points(20, 1), "test": points(10, 2)}, ["lo", "hi"])
    output(tmp_path, {"a": features}, manifest)
    out = tmp_path / "h"
    job = tmp_path / "job.yaml"
    job.write_text(f"output: {tmp_path}\ndataset: d\nfeatures: a\nhead: rnn\nout: nowhere\nepochs: 30\n")
    shown = run(capsys, "train", "--config", str(job), "--out", str(out), "--learning-rate", "0.005")
    lines = [line.split() for line in shown.splitlines()]
    assert lines[0][:6] == ["rnn", "on", "a", "of", "dataset", "d:"]
    assert ["split", "videos", "top-1", "top-5", "mAP"] in lines
    assert ["test", "10", "1.000", "1.000", "1.000"] in lines
    table = lines.index(["hi", "lo"])
    assert lines[table + 1 : table + 3] == [["hi", "5", "0"], ["lo", "0", "5"]]
    assert {p.name for p in out.iterdir()} == {
        "head.safetensors",
        "metrics.json",
        "confusion.csv",
        "curve.csv",
        "curve.png",
    }
    with (out / "confusion.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["split", "label", "hi", "lo"]
    assert ["train", "hi", "20", "0"] in rows
    assert len(rows) == 1 + 3 * 2
    assert (out / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not (tmp_path / "nowhere").exists()


def test_a_split_is_obeyed(tmp_path: Path) -> None:
    """The labels of the test videos are turned round: whoever looked at them in training would not fail on them."""
    train, val, test = points(40, 0), points(20, 1), points(20, 2)
    parts = {"Training": train, "dev": val, "TEST": Videos(test.steps, 1 - test.labels)}
    features, manifest = of_videos(parts, ["lo", "hi"])
    output(tmp_path, {"a": features}, manifest)
    featlib.train(config(tmp_path, head="linear", epochs=40, learning_rate=0.02))
    splits = metrics(tmp_path)["splits"]
    assert {name: figures["videos"] for name, figures in splits.items()} == {"train": 40, "val": 20, "test": 20}
    assert splits["val"]["top_1"] == 1.0
    assert splits["test"]["top_1"] == 0.0


def test_validation_decides_when_training_ends_and_what_is_kept(tmp_path: Path) -> None:
    """Labels drawn by chance: the training loss falls on, that of validation soon rises."""
    random = np.random.default_rng(0)
    parts = {
        name: Videos([random.normal(size=(3, 8)).astype(np.float32) for _ in range(n)], random.integers(0, 2, n))
        for name, n in (("train", 40), ("val", 40))
    }
    features, manifest = of_videos(parts, ["x", "y"])
    output(tmp_path, {"a": features}, manifest)
    featlib.train(config(tmp_path, head="lstm", patience=3, epochs=80, hidden=32, learning_rate=1e-2))
    with (tmp_path / "head" / "curve.csv").open(newline="") as file:
        curve = [(float(r["train_loss"]), float(r["validation_loss"])) for r in csv.DictReader(file)]
    losses = [validation for _, validation in curve]
    best = int(np.argmin(losses))
    assert len(curve) == best + 1 + 3 < 80
    assert curve[-1][0] < curve[best][0], "it would have learned on"
    assert metrics(tmp_path)["best_epoch"] == best + 1
    head = read_head(str(tmp_path / "head"), StoreOptions())
    assert head.spec.settings["best_epoch"] == best + 1
    with torch.inference_mode():
        scores = head.module(*padded(parts["val"].steps))
        numbers = torch.tensor([head.spec.classes.index("xy"[i]) for i in parts["val"].labels])
        assert float(functional.cross_entropy(scores, numbers)) == pytest.approx(losses[best], rel=1e-5)


@pytest.mark.parametrize("kind", ["linear", "rnn", "lstm", "gru", "tcn", "attention", "hard_attention", "embedding"])
def test_a_saved_head_says_what_it_is_and_comes_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    train = points(12, 0)
    features, manifest = of_videos({"train": train, "val": points(8, 1)}, ["lo", "hi"])
    output(tmp_path, {"a": features}, manifest, settings={"a": {"weights": "w"}})
    settings = {"head": kind, "epochs": 2, "seed": 5, "gated": kind == "attention"}
    for name in ("one", "two"):
        featlib.train(config(tmp_path, **settings, out=str(tmp_path / name)))
    path = tmp_path / "one" / "head.safetensors"
    data = path.read_bytes()
    assert data == (tmp_path / "two" / "head.safetensors").read_bytes()
    head = read_head(str(path), StoreOptions())
    assert (head.spec.head, head.spec.seed, head.spec.featlib) == (kind, 5, featlib.__version__)
    assert head.spec.classes == ("hi", "lo")
    assert head.spec.gated == (kind == "attention")
    (stream,) = head.spec.features
    assert (stream.label, stream.shape, stream.size) == ("a", (4,), 4)
    assert stream.fingerprint == fingerprint({"network": "a", "weights": "w"})
    plain = build(head.spec).eval()
    plain.load_state_dict(load_file(path))
    steps = train.steps[0].mean(0, keepdims=True, dtype=np.float64).astype(np.float32) if head.spec.pooled else None
    x, lengths = padded([train.steps[0] if steps is None else steps])
    with torch.inference_mode():
        expected = plain(x, lengths)
        again = from_bytes(data, "again").module(x, lengths)
    if kind == "embedding":
        expected, again = expected.vector, again.vector
    assert torch.equal(expected, again)
    assert expected.abs().sum() > 0


@pytest.mark.parametrize("fuse", ["concat", "mean"])
def test_two_streams_are_fused_before_they_are_classified(tmp_path: Path, fuse: str) -> None:
    """Each stream tells one bit, the class is both: alone they reach a half."""
    random = np.random.default_rng(0)
    streams: dict[str, dict[str, Floats]] = {"a": {}, "b": {}}
    labels, splits = {}, {}
    for i in range(240):
        name, bits = f"v{i:03d}", (i & 1, i >> 1 & 1)
        for place, (stream, bit) in enumerate(zip("ab", bits, strict=True)):
            video = random.normal(0, 0.3, (2 + place, 4))  # pooled heads do not need the same steps
            video[:, place] += 2 * bit - 1
            streams[stream][name] = video.astype(np.float32)
        labels[name], splits[name] = f"{bits[0]}{bits[1]}", "train" if i < 120 else "val" if i < 160 else "test"
    output(tmp_path, streams, Manifest(labels, splits), shard_items=300)
    reached = {}
    for name, chosen in (("both", ["b", "a"]), ("rgb", ["a"])):
        out = str(tmp_path / name)
        featlib.train(
            config(tmp_path, features=chosen, fuse=fuse, head="linear", epochs=60, learning_rate=0.02, out=out)
        )
        reached[name] = metrics(tmp_path, name)["splits"]["test"]["top_1"]
    assert reached["both"] >= 0.95
    assert 0.35 <= reached["rgb"] <= 0.65
    spec = read_head(str(tmp_path / "both"), StoreOptions()).spec
    assert [s.label for s in spec.features] == ["b", "a"]
    assert (spec.size_in, spec.fuse) == ((8, "concat") if fuse == "concat" else (4, "mean"))


@pytest.mark.parametrize("loss", ["triplet", "contrastive"])
def test_an_embedding_is_a_model_like_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str], loss: str) -> None:
    """Trained on some classes it finds others again; its vectors have length 1, so both distances rank alike."""
    parts = {
        "train": many_classes(range(60), 8, 0),
        "val": many_classes(range(60, 75), 8, 50),
        "test": many_classes(range(75, 100), 8, 90),
    }
    features, manifest = of_videos(parts, [f"class{i:02d}" for i in range(100)])
    output(tmp_path, {"a": features}, manifest, shard_items=1000)
    common = ("--output", str(tmp_path), "--dataset", "d", "--features", "a")
    settings = ("--hidden", "128", "--embedding-size", "16", "--epochs", "60", "--batch-size", "160")
    given = () if loss == "triplet" else ("--loss", loss)
    out = str(tmp_path / "head")
    shown = run(
        capsys, "train", *common, "--head", "embedding", *given, *settings, "--learning-rate", "0.003", "--out", out
    )
    assert read_head(out, StoreOptions()).spec.loss == loss
    assert "recall@1" in shown
    assert not (tmp_path / "head" / "confusion.csv").exists()
    reached = metrics(tmp_path)["splits"]["test"]
    assert reached["neighbour_agreement"] == 1.0

    run(capsys, "aggregate", *common, "--head", out)
    test = [i for i, split in manifest.splits.items() if split == "test"]
    rows = featlib.open_features(str(tmp_path), dataset="d", model="a.embedding").to_pandas().set_index("media_id")
    assert rows.labels.isna().all()
    vectors = np.stack(rows.feature.loc[test]).astype(np.float64)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)
    euclidean = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    cosine = 1 - vectors @ vectors.T
    for each in (euclidean, cosine):
        np.fill_diagonal(each, np.inf)
    assert (euclidean.argsort(1)[:, :5] == cosine.argsort(1)[:, :5]).mean() > 0.999
    labels = np.array([manifest.labels[i] for i in test])
    recalled = (labels[euclidean.argmin(1)] == labels).mean()
    before = np.stack([features[i].mean(0) for i in test])
    distances = np.linalg.norm(before[:, None] - before[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(1)] == labels).mean() < 0.6
    assert recalled >= 0.9
    assert recalled == reached["recall_at_1"]


def test_without_matplotlib_a_line_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, manifest = of_videos({"train": points(12, 0), "val": points(8, 1)}, ["lo", "hi"])
    output(tmp_path, {"a": features}, manifest)
    quick = config(tmp_path, head="linear", epochs=2)
    assert featlib.train(quick).notes == ()
    assert (tmp_path / "head" / "curve.png").exists()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    summary = featlib.train(quick)
    assert [line for line in summary.text().splitlines() if "is not there" in line] == [
        "  curve.png was left out: matplotlib is not there; pip install 'featlib[train]' brings it"
    ]
    assert not (tmp_path / "head" / "curve.png").exists(), "that of the earlier training is not this one's"
    assert (tmp_path / "head" / "head.safetensors").exists()


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("cut", ["curve.csv", "metrics.json", "head.safetensors"])
def test_a_cut_training_leaves_no_half_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str, earlier: bool
) -> None:
    """Nor an earlier head beside the figures of the one that was cut."""
    from featlib.training import job

    features, manifest = of_videos({"train": points(12, 0), "val": points(8, 1)}, ["lo", "hi"])
    output(tmp_path, {"a": features}, manifest)
    if earlier:
        featlib.train(config(tmp_path, head="linear", epochs=1))
    write = job.write_file

    def dying(url: str, path: Path, options: StoreOptions) -> None:
        if url.endswith(cut):
            raise KeyboardInterrupt
        write(url, path, options)

    monkeypatch.setattr(job, "write_file", dying)
    with pytest.raises(KeyboardInterrupt):
        featlib.train(config(tmp_path, head="linear", epochs=2))
    there = {p.name for p in (tmp_path / "head").iterdir()} if (tmp_path / "head").exists() else set()
    assert "head.safetensors" not in there
    assert not [name for name in there if name.endswith(".tmp")]


@pytest.mark.parametrize("below", ["", "/head"])
def test_a_place_that_cannot_be_written_is_said_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    from featlib.training import job

    monkeypatch.setattr(job, "open_sources", None)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"--out .*file is no folder; give another place"):
        featlib.train(config(tmp_path, head="linear", out=f"{tmp_path}/file{below}"))
    with monkeypatch.context() as patch:
        patch.setattr(job.os, "access", lambda path, mode: path != str(tmp_path))
        with pytest.raises(ConfigError, match=r"--out .* may not be written to; change its rights"):
            featlib.train(config(tmp_path, head="linear", out=f"{tmp_path}/new{below}"))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_is_full_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, manifest = of_videos({"train": points(12, 0), "val": points(8, 1)}, ["lo", "hi"])
    output(tmp_path, {"a": features}, manifest)

    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoppedError, match=r"--out .*: cannot be written \(No space left on device\)"):
        featlib.train(config(tmp_path, head="linear", epochs=1))


def test_every_field_of_a_training_is_an_option() -> None:
    from typing import get_args

    from featlib.cli import cli
    from featlib.config import Head, Loss

    options = {p.name: p for p in cli.commands["train"].params}
    assert TrainConfig.model_fields.keys() - options.keys() == set()
    assert options["head"].type.choices == get_args(Head)
    assert tuple(options["loss"].type.choices) == get_args(Loss)
