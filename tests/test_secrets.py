"""Keys of a store appear nowhere but in the environment: a whole run is searched for them, with all that Ray keeps."""

import io
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from featlib.storage import Store, StoreOptions
from tests.e2e.clips import write_clips
from tests.servers.swift import SwiftServer

pytestmark = pytest.mark.s3

KEY, TOKEN = (f"canary{secrets.token_hex(16)}" for _ in range(2))
PASSWORD = f"canary{secrets.token_hex(8)}/canary{secrets.token_hex(8)}"  # half of the keys of AWS hold a slash
_SECRETS = (KEY, TOKEN, *PASSWORD.split("/"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    """One of its own, whose secret is the canary."""
    with SwiftServer(tmp_path_factory.mktemp("canary") / "swift", secret=KEY) as server:
        yield server


_EACH = """
import json, sys
from featlib.cli import main
statuses = []
for words in json.loads(sys.argv[1]):
    try:
        main(words)
        statuses.append(0)
    except SystemExit as ended:
        statuses.append(ended.code or 0)
print(json.dumps(statuses))
"""


class Run:
    """Commands with an environment of their own, and all that they leave behind."""

    def __init__(self, folder: Path, server: SwiftServer) -> None:
        self.folder = folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_"))}
        ray = {"RAY_TMPDIR": str(folder / "r"), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        self._environment = {
            **kept, **server.environment(), **ray, "TMPDIR": str(folder), "HOME": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0",
        }  # fmt: skip
        self.said = ""

    def __call__(self, *commands: Sequence[str]) -> list[int]:
        """Runs them one after the other in one process, as it takes seconds to load what they need; gives their exit
        statuses."""
        done = subprocess.run(
            [sys.executable, "-c", _EACH, json.dumps(commands)], env=self._environment, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        self.said += done.stdout + done.stderr
        *_, last = done.stdout.splitlines() or [""]
        assert done.returncode == 0, self.said
        statuses: list[int] = json.loads(last)
        return statuses

    def leaks(self, texts: tuple[str, ...]) -> list[str]:
        """Files below the folder, and what was printed, with one of ``texts`` inside."""
        found = [f"printed: {self.said}"] if any(text in self.said for text in texts) else []
        return found + [str(p) for p in self.folder.rglob("*") if p.is_file() and _holds(p.read_bytes(), texts)]


def _holds(data: bytes, texts: Sequence[str]) -> bool:
    """Whether one of ``texts`` is in an object, or in what is packed in it."""
    return any(text.encode() in part for part in (data, _unpacked(data)) for text in texts)


def _unpacked(data: bytes) -> bytes:
    """Of a Parquet object all columns, decoded, and the metadata of its schema, of its fields and of its footer."""
    if not _is_parquet(data):
        return b""
    file = pq.ParquetFile(io.BytesIO(data))
    table, sink = file.read(), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:  # as they are: not compressed, not encoded
        writer.write_table(table)
    footer = file.metadata.metadata or {}
    return b"\0".join([sink.getvalue(), *footer.keys(), *footer.values()])


def _is_parquet(data: bytes) -> bool:
    return data[:4] == data[-4:] == b"PAR1"


def test_a_whole_job_shows_no_key(server: SwiftServer, tmp_path: Path) -> None:
    bucket = server.bucket()
    for path in write_clips(tmp_path / "clips", 2):
        server.client().upload_file(str(path), bucket, f"in/{path.name}")
    server.client().put_object(Bucket=bucket, Key="list.csv", Body=b"uri\nin/clip00.mp4\nin/clip01.mp4\nin/gone.mp4\n")
    with tempfile.TemporaryDirectory(prefix="fl", dir="/tmp", ignore_cleanup_errors=True) as folder:  # socket paths
        run = Run(Path(folder), server)
        place = ("--output", f"s3://{bucket}/out", "--dataset", "d")
        model = ("--model", "squeezenet1_1", "--weights", "random:0", "--max-failed", "1")
        assert run(("extract", f"s3://{bucket}/list.csv", *place, *model)) == [0], run.said
        assert "not_found" in run.said
        statuses = run(
            ("verify", f"s3://{bucket}/list.csv", *place, "--model", "squeezenet1_1", "--max-failed", "1"),
            ("extract", f"s3://{bucket}/list.csv", *place, *model, "--endpoint-url", "http://127.0.0.1:9"),
            ("extract", f"s3://me:{PASSWORD}@{bucket}/list.csv", *place, *model),
            ("extract", f"s3://{bucket}/list.csv?X-Amz-Signature={PASSWORD}", *place, *model),
            ("extract", f"s3://{bucket}/none.csv", *place, *model),
        )
        assert statuses == [0, 1, 2, 2, 2], run.said
        logs = list(Path(folder, "r").rglob("raylet.out"))
        assert logs, "Ray's session folder is among what is searched"
        assert not run.leaks(_SECRETS)
    store = Store(f"s3://{bucket}", StoreOptions(server.endpoint_url))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        objects = {info.key: store.get(info.key) for info in store.list("out")}
    assert {key.split("/")[1] for key in objects} == {"_featlib", "features", "outcomes"}
    assert all(_is_parquet(data) for key, data in objects.items() if key.endswith(".parquet"))
    assert b"clip01.mp4" in b"".join(_unpacked(data) for key, data in objects.items() if "/features/" in key)
    assert not [key for key, data in objects.items() if _holds(data, _SECRETS)]


def test_a_canary_that_is_there_would_be_found(server: SwiftServer, tmp_path: Path) -> None:
    run = Run(tmp_path, server)
    assert not run.leaks((KEY,))
    (tmp_path / "log").write_bytes(b"\0some " + KEY.encode())
    run.said = f"a {TOKEN}"
    assert len(run.leaks((KEY, TOKEN))) == 2


@pytest.mark.parametrize("where", ["column", "list in a column", "metadata of a field", "metadata of the schema"])
def test_a_canary_in_a_parquet_object_would_be_found(server: SwiftServer, tmp_path: Path, where: str) -> None:
    others = [secrets.token_hex(16) for _ in range(200)]
    values = [*others, KEY if where == "column" else "", *others]
    lists = [[other, KEY if where == "list in a column" else ""] for other in values]
    field = pa.field("text", pa.string(), metadata={"note": KEY} if where == "metadata of a field" else None)
    schema = pa.schema([field, pa.field("lists", pa.list_(pa.string()))])
    if where == "metadata of the schema":
        schema = schema.with_metadata({"note": KEY})
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([values, lists], schema=schema), path, compression="zstd", write_statistics=False)
    is_bare = where == "metadata of the schema"
    assert (KEY.encode() in path.read_bytes()) == is_bare, "else nothing is shown here"
    assert Run(tmp_path, server).leaks((KEY,)) == [str(path)]
