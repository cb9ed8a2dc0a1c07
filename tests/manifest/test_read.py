"""Manifests of every kind become the same rows."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featlib.errors import ConfigError
from featlib.manifest import BATCH_ROWS, SCHEMA, media_id, read_manifest, write_manifest
from featlib.storage import Store, StoreOptions

ROWS = [
    {"uri": "a.mp4", "media_id": "007", "start_s": None, "end_s": 2.5, "label": "cat", "split": "train", "fps": "25"},
    {
        "uri": "s3://b/ü ber.mp4",
        "media_id": "1.0",
        "start_s": 1.5,
        "end_s": 2.0,
        "label": "1",
        "split": None,
        "fps": "x",
    },
    {"uri": "/x/c.mp4", "media_id": None, "start_s": 0.0, "end_s": None, "label": None, "split": "val", "fps": None},
]


def read(*sources: str | Path, **options: Any) -> list[dict[str, Any]]:
    return [row for batch in read_manifest([str(s) for s in sources], **options) for row in batch.to_pylist()]


def write_rows(path: Path) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n", encoding="utf-8")
    else:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        lines = [ROWS[0].keys(), *(("" if v is None else str(v) for v in row.values()) for row in ROWS)]
        path.write_text("\n".join(delimiter.join(line) for line in lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_every_table_gives_the_same_rows(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{ending}"
    write_rows(path)
    rows = read(path)
    base = {"source": str(path), "size": None}
    c_id = media_id("/x/c.mp4", 0.0, None)
    assert rows == [
        {"row": 1, **base, "media_id": "007", "uri": f"{tmp_path}/a.mp4", "start_s": None, "end_s": 2.5}
        | {"label": "cat", "split": "train", "manifest": '{"fps": "25"}'},
        {"row": 2, **base, "media_id": "1.0", "uri": "s3://b/ü ber.mp4", "start_s": 1.5, "end_s": 2.0}
        | {"label": "1", "split": None, "manifest": '{"fps": "x"}'},
        {"row": 3, **base, "media_id": c_id, "uri": "/x/c.mp4", "start_s": 0.0, "end_s": None}
        | {"label": None, "split": "val", "manifest": '{"fps": null}'},
    ]


def test_a_list_of_uris(tmp_path: Path) -> None:
    path = tmp_path / "m.txt"
    path.write_bytes(b"\xef\xbb\xbfa.mp4\r\n\r\n  b c.mp4 \ns3://b/#1.mp4")
    rows = read(path)
    assert [(row["row"], row["uri"]) for row in rows] == [
        (1, f"{tmp_path}/a.mp4"),
        (3, f"{tmp_path}/b c.mp4"),
        (4, "s3://b/#1.mp4"),
    ]
    assert {row["manifest"] for row in rows} == {None}


def test_every_batch_has_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("uri\na.mp4\n")
    (batch,) = read_manifest([str(path)])
    assert batch.schema == SCHEMA


def test_the_id_is_the_hash_that_its_docstring_says() -> None:
    import hashlib

    assert media_id("s3://b/a.mp4") == hashlib.sha256(b"s3://b/a.mp4\0\0").hexdigest()[:32]
    assert media_id("ü", 0.5, 1) == hashlib.sha256("ü\0".encode() + b"0.5\0" + b"1.0").hexdigest()[:32]
    assert len({media_id("a", 1, None), media_id("a", None, 1), media_id("a"), media_id("a", 1, 2)}) == 4


def test_ids_in_numbers_and_other_types_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    table = {
        "uri": pa.array(["a", "b"]).dictionary_encode(),
        "media_id": pa.array([7, 8], pa.int64()),
        "start_s": pa.array([1, None], pa.int32()),
        "label": pa.array([3, 4]),
        "when": pa.array([0, 86_400_000], pa.timestamp("ms")),
        "scores": pa.array([[0.5, float("nan")], None]),
        "raw": pa.array([b"\x01", None], pa.binary()),
    }
    pq.write_table(pa.table(table), path)
    first, second = read(path)
    assert (first["media_id"], first["start_s"], first["label"]) == ("7", 1.0, "3")
    assert json.loads(first["manifest"]) == {"when": "1970-01-01T00:00:00", "scores": [0.5, None], "raw": "01"}
    assert json.loads(second["manifest"]) == {"when": "1970-01-02T00:00:00", "scores": None, "raw": None}
    assert list(json.loads(first["manifest"])) == ["raw", "scores", "when"]


def test_json_lines_keep_each_rows_own_keys(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"uri": "a", "media_id": 12, "x": {"b": 1, "a": [true]}}\n{"uri": "b", "y": 1.5}\n{"uri": "c"}\n')
    rows = read(path)
    assert [row["manifest"] for row in rows] == ['{"x": {"a": [true], "b": 1}}', '{"y": 1.5}', None]
    assert rows[0]["media_id"] == "12"


def test_quoted_cells(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text('uri,note\n"a, b.mp4","two\nlines, ""quoted"""\nc.mp4,\n')
    rows = read(path)
    assert [row["uri"] for row in rows] == [f"{tmp_path}/a, b.mp4", f"{tmp_path}/c.mp4"]
    assert json.loads(rows[0]["manifest"]) == {"note": 'two\nlines, "quoted"'}


def test_another_uri_column(tmp_path: Path) -> None:
    for name, text in (("m.csv", "video,x\na.mp4,1\n"), ("m.jsonl", '{"video": "a.mp4", "x": "1"}\n')):
        (tmp_path / name).write_text(text)
        (row,) = read(tmp_path / name, uri_column="video")
        assert (row["uri"], row["manifest"]) == (f"{tmp_path}/a.mp4", '{"x": "1"}')


def test_limit_spans_sources_and_stops_reading(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1\n2\n3\n")
    (tmp_path / "b.txt").write_text("4\n5\n")
    sources = [tmp_path / "a.txt", tmp_path / "b.txt"]
    assert [Path(row["uri"]).name for row in read(*sources, limit=4)] == ["1", "2", "3", "4"]
    assert [Path(row["uri"]).name for row in read(*sources, tmp_path / "missing.csv", limit=5)] == list("12345")
    with pytest.raises(ConfigError, match="limit"):
        read(*sources, limit=0)


def test_relative_manifests_give_absolute_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "m.txt").write_text("a.mp4\n")
    monkeypatch.chdir(tmp_path)
    assert read("sub/m.txt")[0]["uri"] == f"{tmp_path}/sub/a.mp4"
    assert read(f"file://{tmp_path}/sub/m.txt")[0]["uri"] == f"{tmp_path}/sub/a.mp4"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "videos"
    for name in ("b.MP4", "a/x.avi", "a/notes.txt", "a.jpg", ".hidden.mp4", "d.mp4/inside.webm", "m.csv"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    return root


def test_folders_globs_and_single_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = ["a.jpg", "a/x.avi", "b.MP4", "d.mp4/inside.webm"]
    rows = read(folder)
    assert [row["uri"] for row in rows] == [f"{folder}/{name}" for name in everything]
    assert [(row["row"], row["size"]) for row in rows] == [(i, 5) for i in range(1, 5)]
    assert [row["uri"] for row in read(f"{folder}/*")] == [f"{folder}/a.jpg", f"{folder}/b.MP4"]
    assert [row["uri"] for row in read(f"{folder}/b.MP4", f"{folder}/a")] == [f"{folder}/b.MP4", f"{folder}/a/x.avi"]
    monkeypatch.chdir(folder.parent)
    assert [row["uri"] for row in read("videos")] == [row["uri"] for row in rows]
    assert read("videos/b.MP4")[0]["media_id"] == read(folder)[2]["media_id"]


def test_a_glob_of_manifests(tmp_path: Path) -> None:
    for name in ("m1.csv", "m2.csv"):
        (tmp_path / name).write_text(f"uri\n{name}.mp4\n")
    rows = read(f"{tmp_path}/m*.csv")
    assert [(Path(row["source"]).name, row["row"]) for row in rows] == [("m1.csv", 1), ("m2.csv", 1)]


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_a_written_manifest_reads_like_the_folder(ending: str, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / f"out{ending}"
    assert write_manifest(str(folder), str(output), StoreOptions()) == 4
    kept = ("row", "media_id", "uri", "size", "manifest")
    pick = [{name: row[name] for name in kept} for row in read(folder)]
    assert [{name: row[name] for name in kept} for row in read(output)] == pick
    assert write_manifest(f"{folder}/a", str(output), StoreOptions()) == 1
    assert len(read(output)) == 1


def test_write_manifest_refuses_what_cannot_be_read_back(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, output, word in (
        (folder, tmp_path / "m.xlsx", "ending"),
        (folder, "s3://b/m.csv", "local files"),
        (folder, "S3://b/m.csv", "local files"),
        (tmp_path / "empty", tmp_path / "m.csv", "no media"),
    ):
        with pytest.raises(ConfigError, match=word):
            write_manifest(str(source), str(output), StoreOptions("http://127.0.0.1:9", deadline_s=1.0))
    assert not (tmp_path / "m.csv").exists()


@pytest.mark.s3
def test_everything_in_s3(s3_env: Any, tmp_path: Path) -> None:
    store = Store(f"s3://{s3_env.bucket()}")
    for name in ("v/a.mp4", "v/b/c.avi", "v/readme.txt"):
        store.put(name, b"123")
    found = [f"{store.url}/v/a.mp4", f"{store.url}/v/b/c.avi"]
    assert [row["uri"] for row in read(f"{store.url}/v")] == [row["uri"] for row in read(f"{store.url}/v/")] == found
    assert [row["uri"] for row in read(f"{store.url}/v/*/*.avi")] == found[1:]
    assert [(row["uri"], row["size"]) for row in read(f"{store.url}/v/a.mp4")] == [(found[0], 3)]
    for ending in (".parquet", ".csv", ".jsonl"):
        output = f"{store.url}/m/list{ending}"
        assert write_manifest(f"{store.url}/v", output, StoreOptions()) == 2
        assert [row["uri"] for row in read(output)] == found
    store.put("m/relative.txt", b"v/a.mp4\nx.mp4\n")
    assert [row["uri"] for row in read(f"{store.url}/m/relative.txt")] == [
        f"{store.url}/m/v/a.mp4",
        f"{store.url}/m/x.mp4",
    ]
    for text in (b"/etc/passwd", b"file:///etc/passwd", b"../v/a.mp4"):
        store.put("m/bad.txt", text)
        with pytest.raises(ConfigError, match="row 1"):
            read(f"{store.url}/m/bad.txt")
    with pytest.raises(ConfigError, match="not_found"):
        read(f"{store.url}/m/nothing.csv")


_MEMORY = """
import sys
from pathlib import Path
from featlib.manifest import read_manifest, tables
tables._CSV_BLOCK_BYTES = 1 << 18  # several are read ahead: of small ones there are many in a small file
def peak():  # ru_maxrss begins with that of the process that started this one
    return next(int(s.split()[1]) for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
import pyarrow.csv, pyarrow.parquet
before = peak()
rows = sum(batch.num_rows for batch in read_manifest([sys.argv[1]]))
print(rows, (peak() - before) // 1024)
"""


def test_a_big_manifest_is_streamed(tmp_path: Path) -> None:
    """Of one that is four times larger, hardly more is in memory at once."""
    path, sizes_mb, grown_mb = tmp_path / "m.csv", [], []
    for rows in (4 * BATCH_ROWS + 1, 16 * BATCH_ROWS + 1):
        with path.open("w") as file:
            file.write("uri,note\n")
            file.writelines(f"some/long/folder/name/video_{i:09}.mp4,{'n' * 200}\n" for i in range(rows))
        ended = subprocess.run([sys.executable, "-c", _MEMORY, str(path)], capture_output=True, text=True, check=True)
        found, grown = map(int, re.findall(r"\d+", ended.stdout))
        assert found == rows
        sizes_mb.append(os.path.getsize(path) / (1 << 20))
        grown_mb.append(grown)
    assert grown_mb[1] - grown_mb[0] < (sizes_mb[1] - sizes_mb[0]) / 2, (grown_mb, sizes_mb)
