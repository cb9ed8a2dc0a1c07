"""The example files under cluster/, held against the launcher's schema, the facts of KubeRay and featlib's own rules.

No Kubernetes, no AWS and no Docker are at hand: what these tests cannot say is whether a cloud accepts the files.
"""

import json
import re
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

from featlib.config import ExtractConfig, extract_config
from featlib.extract_options import job_values
from featlib.sampling import ClipSampling, clip_sampling

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LOCK = ROOT / "requirements.lock"


def locked_ray() -> str:
    found = re.search(r"^ray==([\d.]+)", LOCK.read_text(), re.MULTILINE)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def launcher() -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())


@pytest.fixture(scope="module")
def rayjob() -> tuple[dict[str, Any], dict[str, Any]]:
    config_map, job = yaml.safe_load_all((CLUSTER / "rayjob.yaml").read_text())
    return config_map, job


def test_launcher_schema_accepts_the_cluster_file(launcher: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(launcher, schema)
    with pytest.raises(jsonschema.ValidationError, match="worker_node"):
        jsonschema.validate({**launcher, "worker_node": {}}, schema)


def test_launcher_head_is_of_a_known_type_and_takes_no_work(launcher: dict[str, Any]) -> None:
    types = launcher["available_node_types"]
    assert types[launcher["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
    workers = {name: t for name, t in types.items() if name != launcher["head_node_type"]}
    assert all(t["resources"]["GPU"] >= 1 for t in workers.values())
    assert sum(t["max_workers"] for t in workers.values()) <= launcher["max_workers"]
    assert all(t["min_workers"] == t["max_workers"] for t in workers.values()), "pools are sized at the start"


def test_launcher_cluster_is_closed(launcher: dict[str, Any]) -> None:
    assert "--env RAY_AUTH_MODE=token" in launcher["docker"]["run_options"]
    assert "/home/ray/.ray/auth_token" in launcher["file_mounts"]
    head = " ".join(launcher["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in head


def test_rayjob_runs_once_a_cluster_and_cleans_up(rayjob: tuple[dict[str, Any], dict[str, Any]]) -> None:
    _, job = rayjob
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
    assert spec["backoffLimit"] >= 1
    assert spec["submitterConfig"]["backoffLimit"] == 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]


def test_rayjob_entrypoint_finds_its_script_and_its_job_file(rayjob: tuple[dict[str, Any], dict[str, Any]]) -> None:
    config_map, job = rayjob
    python, script, option, path = shlex.split(job["spec"]["entrypoint"])
    assert (python, option) == ("python", "--config")
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    folder, name = script.rsplit("/", 1)
    assert f"jobs {folder}" in dockerfile
    assert (ROOT / "jobs" / name).is_file()
    pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mount,) = pod["containers"][0]["volumeMounts"]
    (volume,) = pod["volumes"]
    assert path == f"{mount['mountPath']}/{next(iter(config_map['data']))}"
    assert volume["name"] == mount["name"]
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]


def test_rayjob_job_file_is_a_job(rayjob: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(rayjob[0]["data"]["job.yaml"])
    assert job(file).dataset == "clips"


def test_example_job_file_is_a_job_and_flags_beat_it() -> None:
    config = job(CLUSTER / "job.yaml")
    assert config.labels == ("resnet50", "r3d_18.15fps")
    assert config.models[0].frame_sampling == "fps:2"
    clips = clip_sampling(config.models[1].clip_sampling or "", ClipSampling(frames=8))
    assert (clips.frames, clips.tail, clips.fps) == (16, "pad", 15)
    assert job(CLUSTER / "job.yaml", dataset="other").dataset == "other"


def job(file: Path, **flags: Any) -> ExtractConfig:
    return extract_config(job_values({"config": str(file), **flags}))


def test_every_file_has_the_locked_ray_and_one_image(launcher: dict[str, Any]) -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    rayjob = (CLUSTER / "rayjob.yaml").read_text()
    assert f"rayproject/ray:{locked_ray()}-py311-cu" in dockerfile
    assert f'rayVersion: "{locked_ray()}"' in rayjob
    images = set(re.findall(r"image: (\S+)", rayjob)) | {launcher["docker"]["image"]}
    assert len(images) == 1
    assert images.pop().endswith(f"/featlib:{version('featlib')}")
