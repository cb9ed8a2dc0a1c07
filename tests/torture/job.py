"""The real job on a Ray of two nodes: somebody dies by SIGKILL at a moment of chance, and the job is run to its end."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow.parquet as pq

from featlib.layout import Keys
from featlib.manifest import read_manifest
from featlib.shards.commit import read_outcomes
from featlib.shards.staging import piece_keys, read_shards
from featlib.shards.verify import verify
from featlib.storage import Store, StoreOptions
from tests.e2e.clips import write_clips
from tests.servers.swift import SwiftServer
from tests.torture.tally import Tally

VICTIMS = ("driver", "decode actor", "decoding process", "extract actor", "stage task", "raylet")
_WORDS = {"decode actor": "_DecodeActor", "extract actor": "_ExtractActor", "stage task": "StageWorker"}
_LABELS = ("cnn", "scores")
_MOST_RUNS = 3
_MOST_TRIALS = 3  # for each kill: a victim may not be there when its moment comes
_LOOK_S = 0.02
_MOST_S = 300.0
_KEYS = Keys("d")

Features = dict[tuple[str, str, int], npt.NDArray[np.float32]]


@dataclass
class _Nodes:
    """A Ray of two nodes on this machine; the second may die and come back."""

    cluster: Any
    second: Any = None

    def add_second(self) -> None:
        self.second = self.cluster.add_node(num_cpus=4)
        self.cluster.wait_for_nodes()

    def kill_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None


@contextmanager
def _two_nodes(environment: dict[str, str]) -> Iterator[_Nodes]:
    """The nodes' workers find the store by ``environment``, which this process and so the nodes have."""
    from ray.cluster_utils import Cluster

    os.environ.update(environment)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "object_store_memory": 300 << 20})
    nodes = _Nodes(cluster)
    try:
        nodes.add_second()
        yield nodes
    finally:
        cluster.shutdown()


class _Job:
    """One job over a few generated clips, with an output of its own each time."""

    def __init__(self, folder: Path, bucket: str, address: str, endpoint_url: str) -> None:
        self._folder, self._bucket, self._address = folder, bucket, address
        self._endpoint_url = endpoint_url
        self.clips = folder / "clips"
        write_clips(self.clips, 8)

    def store(self, name: str) -> Store:
        return Store(f"s3://{self._bucket}/{name}", StoreOptions(self._endpoint_url))

    def start(self, name: str) -> "subprocess.Popen[bytes]":
        models = [word for label, seed in zip(_LABELS, "01", strict=True) for word in (
            "--model", f"{label}=squeezenet1_1", "--weights", f"{label}=random:{seed}")]  # fmt: skip
        command = [
            sys.executable, "-m", "featlib", "extract", str(self.clips), "--output", self.store(name).url,
            "--dataset", "d", *models, "--ray-address", self._address, "--endpoint-url", self._endpoint_url,
            "--shard-items", "2", "--unit-items", "1", "--decode-workers", "1", "--extract-workers", "1",
            "--extract-threads", "1", "--compile", "off",
        ]  # fmt: skip
        log = (self._folder / "job.log").open("wb")
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def log(self) -> str:
        return (self._folder / "job.log").read_text(errors="replace")[-1500:]

    def staged(self, name: str) -> set[str]:
        """Ids of the media of which nothing need be decoded any more: all their labels are published, or staged."""
        store = self.store(name)
        done = [self._published(store, label) for label in _LABELS]
        pieces = [piece for _, pieces in read_shards(store, piece_keys(store, _KEYS)) for piece in pieces]
        whole = {r.media_id for p in pieces for r in p.reports if set(r.models) == set(_LABELS) and r.segment.n <= 1}
        return set.intersection(*done) | whole

    @staticmethod
    def _published(store: Store, label: str) -> set[str]:
        keys = [info.key for info in store.list(_KEYS.outcomes(label))]
        return {media_id for key in keys for media_id in read_outcomes(store, key)["media_id"].to_pylist()}

    def frames(self, name: str) -> dict[str, int]:
        """By media id, the frames that were decoded of it."""
        store, found = self.store(name), dict[str, int]()
        for info in store.list(_KEYS.outcomes(_LABELS[0])):
            table = read_outcomes(store, info.key)
            found |= dict(zip(table["media_id"].to_pylist(), table["frames_decoded"].to_pylist(), strict=True))
        return found

    def records(self, name: str) -> set[str]:
        """Keys of what each run that did something says of itself."""
        return {info.key for info in self.store(name).list(_KEYS.runs)}

    def decoded(self, name: str, records: set[str]) -> int:
        """Frames that were decoded by the runs of these records."""
        return sum(int(json.loads(self.store(name).get(key))["frames_decoded"]) for key in records)

    def objects(self, name: str) -> set[str]:
        return {info.key for label in _LABELS for root in (_KEYS.features(label), _KEYS.outcomes(label))
                for info in self.store(name).list(root)}  # fmt: skip

    def left_behind(self, name: str) -> list[str]:
        store = self.store(name)
        return [info.key for prefix in (_KEYS.stage, _KEYS.units, _KEYS.drivers) for info in store.list(prefix)]

    def features(self, name: str) -> tuple[Features, list[str]]:
        """What a reader finds, and what it finds wrong."""
        store, found, wrong = self.store(name), Features(), []
        for label in _LABELS:
            for info in store.list(_KEYS.features(label)):
                for row in pq.ParquetFile(io.BytesIO(store.get(info.key))).read().to_pylist():
                    key = (label, row["media_id"], row["clip_index"])
                    if key in found:
                        wrong.append(f"{key} is there twice")
                    found[key] = np.array(row["feature"], np.float32)
            checked = verify(read_manifest((str(self.clips),)), store, _KEYS, label)
            if not checked.complete:
                wrong.append(f"featlib verify {label}: {checked.text()}")
        return found, wrong


def torture(folder: Path, total: int, seed: int) -> Tally:
    """Kills ``total`` times, the victims in turn."""
    tally = Tally("kills of drivers, actors, tasks and nodes of the real job", step=5)
    folder.mkdir(parents=True)
    with SwiftServer(folder / "swift") as server, _two_nodes(server.environment()) as nodes:
        job = _Job(folder, server.bucket(), nodes.cluster.address, server.endpoint_url)
        started = time.monotonic()
        process = job.start("calm")
        assert process.wait(_MOST_S) == 0, job.log()
        calm_s = time.monotonic() - started
        truth, wrong = job.features("calm")
        assert truth
        assert not wrong, wrong
        frames, objects = job.frames("calm"), job.objects("calm")
        killed, stopped = Counter[str](), Counter[str]()
        for number in count():
            if tally.count >= total or number >= _MOST_TRIALS * total:
                break
            random = Random(f"{seed} {number}")
            victim, name = VICTIMS[number % len(VICTIMS)], f"run-{number}"
            trial = _Trial(job, nodes, name, victim, frames)
            wrong = trial.play(random.uniform(0.05, 0.95) * calm_s, random)
            found, more = job.features(name)
            wrong += more + _differences(found, truth) + [f"{key} was left behind" for key in job.left_behind(name)]
            wrong += [f"objects differ: {d}" for d in [job.objects(name) ^ objects] if d]
            tally.add(f"job --seed {seed} --kills {number + 1} ({victim})", trial.num_kills, wrong)
            killed[victim] += trial.num_kills
            stopped[victim] += trial.num_stops
            job.store(name).delete([info.key for info in job.store(name).list("")])
        if tally.count < total:
            tally.add(f"job --seed {seed} --kills {total}", 0, [f"only {tally.count} kills came about"])
    print("kills: " + ", ".join(f"{killed[victim]} {victim}" for victim in VICTIMS))
    print("after which the job stopped and was run again: " + ", ".join(f"{n} {v}" for v, n in stopped.items() if n))
    return tally


class _Trial:
    """One job that is killed into once, and run to its end.

    Args:
        frames: By media id, the frames that are decoded of it.
    """

    def __init__(self, job: _Job, nodes: _Nodes, name: str, victim: str, frames: dict[str, int]) -> None:
        self._job, self._nodes, self._name, self._victim, self._frames = job, nodes, name, victim, frames
        self.num_kills = self.num_stops = 0

    def play(self, delay_s: float, random: Random) -> list[str]:
        """Gives what was wrong, but for the rows."""
        process = self._job.start(self._name)
        self.num_kills = _kill_after(process, self._nodes, self._victim, delay_s, random)
        status = process.wait(_MOST_S)
        if self._nodes.second is None:
            self._nodes.add_second()
        wrong: list[str] = []
        while status != 0 and self.num_stops < _MOST_RUNS:
            if status not in (1, -signal.SIGKILL):
                return [f"exit {status}: {self._job.log()}"]
            self.num_stops += 1
            staged, records = self._job.staged(self._name), self._job.records(self._name)
            status = self._job.start(self._name).wait(_MOST_S)
            if status == 0:
                wrong = self._done_again(staged, self._job.records(self._name) - records)
        return wrong if status == 0 else [f"exit {status} after {self.num_stops} more runs: {self._job.log()}"]

    def _done_again(self, staged: set[str], records: set[str]) -> list[str]:
        """Whether the run that has just ended decoded more than what was not staged before it began."""
        most = sum(count for media_id, count in self._frames.items() if media_id not in staged)
        decoded = self._job.decoded(self._name, records)
        return [f"{decoded} frames were decoded again, {most} were not staged"] if decoded > most else []


def _kill_after(process: "subprocess.Popen[bytes]", nodes: _Nodes, victim: str, delay_s: float, random: Random) -> int:
    """Kills once, ``delay_s`` into the job or as soon after that as the victim is there; 0 when it never was."""
    ends = time.monotonic() + delay_s
    kill: Callable[[], bool] = {
        "driver": lambda: _sent(process.pid),
        "raylet": lambda: nodes.kill_second() is None,
    }.get(victim, lambda: _kill_worker(nodes, victim, random))
    while process.poll() is None:
        try:
            process.wait(max(0.02, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            if kill():
                return 1
            ends = time.monotonic() + _LOOK_S
    return 0


def _kill_worker(nodes: _Nodes, victim: str, random: Random) -> bool:
    """One of the workers of this Ray; those of others on this machine are no children of its processes."""
    workers = [p for p in psutil.Process().children(recursive=True) if _is(p, victim)]
    return bool(workers) and _sent(random.choice(workers).pid)


def _is(process: psutil.Process, victim: str) -> bool:
    try:
        if victim == "decoding process":
            return any(_WORDS["decode actor"] in word for p in process.parents() for word in p.cmdline())
        return any(_WORDS[victim] in word for word in process.cmdline())
    except psutil.Error:
        return False


def _sent(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _differences(found: Features, truth: Features) -> list[str]:
    wrong = [f"{key} is lost" for key in truth if key not in found]
    wrong += [f"{key} is too many" for key in found if key not in truth]
    for key, value in truth.items():
        if key in found and not np.linalg.norm(found[key] - value) <= 1e-5 * np.linalg.norm(value):
            wrong.append(f"{key} has other values")
    return wrong
