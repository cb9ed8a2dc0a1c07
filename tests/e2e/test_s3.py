"""From s3:// to s3:// as from disk to disk, against a real S3-speaking server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import featlib
from tests.e2e.clips import write_clips
from tests.e2e.rows import Key, Row, check_same_rows, keyed
from tests.e2e.small import POOLS
from tests.servers.faults import FaultProxy
from tests.torture.faulty import KINDS, Weather

pytestmark = [pytest.mark.ray, pytest.mark.s3]

MODELS = [
    {"network": "squeezenet1_1", "weights": "random:0", "frame_sampling": "every:4"},
    {"network": "tests.extractors.tiny_networks:tiny_clips", "label": "clips", "weights": "random:0"},
]
COMMON = {"dataset": "d", "models": MODELS, "shard_items": 2, "max_failed": 0.5, **POOLS}


@pytest.fixture(scope="module")
def disk(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows from disk to disk; what was read is beside them: three clips, and a file that is none."""
    folder = tmp_path_factory.mktemp("s3")
    write_clips(folder / "clips", 3)
    (folder / "clips" / "broken.mp4").write_bytes(b"\0" * 2000)
    config = featlib.ExtractConfig(manifest=[str(folder / "clips")], output=str(folder / "disk"), **COMMON)
    assert featlib.extract(config).media == {"ok": 3, "failed": 1}
    return folder / "disk"


def upload(server: Any, disk: Path) -> str:
    """Copies what was read from disk to a bucket of its own, under ``in/``."""
    bucket: str = server.bucket("e2e")
    for path in (disk.parent / "clips").iterdir():
        server.client().upload_file(str(path), bucket, f"in/{path.name}")
    return bucket


def rows(url: str, endpoint_url: str | None = None) -> dict[Key, Row]:
    found: list[dict[str, Any]] = []
    for model in ("squeezenet1_1", "clips"):
        features = featlib.open_features(url, dataset="d", model=model, endpoint_url=endpoint_url)
        found += [{**row, "model": model} for row in features.to_pandas().to_dict("records")]
    return keyed(found)


def test_the_same_rows_from_s3_to_s3_as_from_disk_to_disk(s3_server: Any, s3_env: Any, disk: Path) -> None:
    bucket = upload(s3_server, disk)
    config = featlib.ExtractConfig(
        manifest=[f"s3://{bucket}/in/"],
        output=f"s3://{bucket}/out",
        endpoint_url=s3_server.endpoint_url,
        **COMMON,
    )

    summary = featlib.extract(config)

    assert summary.media == {"ok": 3, "failed": 1}
    check_same_rows(rows(f"s3://{bucket}/out", s3_server.endpoint_url), rows(str(disk)), tolerance=0.0)
    outcomes = featlib.open_features(
        f"s3://{bucket}/out", dataset="d", model="clips", endpoint_url=s3_server.endpoint_url
    ).outcomes()
    by_name = outcomes.set_index(outcomes.uri.str.rpartition("/")[2])
    assert by_name.loc["broken.mp4", "error_class"] == "unknown_format"
    assert by_name.loc["clip00.mp4", "size"] == (disk.parent / "clips" / "clip00.mp4").stat().st_size
    again = featlib.extract(config)
    assert not again.did_work


def test_a_tenth_of_faults_changes_no_row(s3_server: Any, s3_env: Any, disk: Path) -> None:
    """On reads of media, too; bits flipped in those are TLS's business: no checksum of S3 covers a range."""
    bucket = upload(s3_server, disk)
    weather = Weather(3, 0.1, kinds=[kind for kind in KINDS if not kind.startswith("flip")])
    with FaultProxy(s3_server.endpoint_url, weather) as proxy:
        config = featlib.ExtractConfig(
            manifest=[f"s3://{bucket}/in/"],
            output=f"s3://{bucket}/out",
            endpoint_url=proxy.endpoint_url,
            unit_items=1,
            **COMMON,
        )
        summary = featlib.extract(config)
    assert weather.faults > 5
    assert summary.media == {"ok": 3, "failed": 1}
    check_same_rows(rows(f"s3://{bucket}/out", s3_server.endpoint_url), rows(str(disk)), tolerance=0.0)


_KEYLESS = """
import json, os, sys
from featlib.cli import main
from featlib.nodes import start_local_ray
start_local_ray(num_cpus=4, object_store_mb=200)
os.environ.update(json.loads(sys.argv[1]))  # this process alone
main(json.loads(sys.argv[2]))
"""


def test_workers_without_the_stores_keys_stop_the_job_and_cost_no_item(
    s3_server: Any, s3_env: Any, tmp_path: Path
) -> None:
    """The driver has keys, the cluster's nodes have none: what people forget first."""
    clips = write_clips(tmp_path / "clips", 2)
    bucket = s3_server.bucket("e2e")
    words = [
        "extract", *map(str, clips), "--output", f"s3://{bucket}/out", "--dataset", "d", "--model", "squeezenet1_1",
        "--weights", "random:0", "--endpoint-url", s3_server.endpoint_url,
    ]  # fmt: skip
    words += [word for name, value in POOLS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_"))}
    ended = subprocess.run(
        [sys.executable, "-c", _KEYLESS, json.dumps(s3_server.environment()), json.dumps(words)],
        env={**bare, "HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr[-3000:]
    line = ended.stderr.splitlines()[-1]
    assert line.startswith("featlib: Ray's workers on")
    assert "AWS_ACCESS_KEY_ID" in line
    client = s3_server.client()
    keys = [o["Key"] for o in client.list_objects_v2(Bucket=bucket).get("Contents", ())]
    assert not [key for key in keys if key.startswith(("out/outcomes", "out/features", "out/_featlib/d/stage"))]
