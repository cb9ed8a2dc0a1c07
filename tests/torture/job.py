"""The real job on a Ray of two nodes: somebody dies by SIGKILL at a moment of chance, and the job is run to its end."""

import io
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from tests.servers.faults import FaultProxy
from tests.servers.swift import SwiftServer
from tests.torture.faulty import Weather
from tests.torture.tally import Tally

VICTIMS = ("driver", "decode actor", "decoding process", "extract actor", "stage task", "raylet")
_WORDS = {"decode actor": "_DecodeActor", "extract actor": "_ExtractActor", "stage task": "StageWorker"}
_LABELS = ("cnn", "scores")
_MOST_RUNS = 3
_MOST_TRIALS = 3  # for each kill: a victim may not be there when its moment comes
_EARLY_SHARE = 0.2
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

    def at_work(self) -> list[int]:
        """Pids of the job's processes on the second node."""
        raylet = self.second.all_processes["raylet"][0].process.pid
        words = _WORDS.values()
        titles = {p.pid: _title(p) for p in psutil.Process(raylet).children()}
        return [pid for pid, title in titles.items() if any(word in title for word in words)]

    def kill_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None


@contextmanager
def _two_nodes(environment: dict[str, str]) -> Iterator[_Nodes]:
    """The nodes' workers find the store by ``environment``, which this process and so the nodes have. Ray listens on
    all addresses here, and asks for a token."""
    # Ray looks for it once, when it is loaded, and keeps the first that it finds.
    token = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, **environment})
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "object_store_memory": 300 << 20})
    nodes = _Nodes(cluster)
    try:
        nodes.add_second()
        yield nodes
    finally:
        cluster.shutdown()


class _Job:
    """One job over a few generated clips in the store, with an output of its own each time."""

    def __init__(self, folder: Path, bucket: str, address: str, endpoint_url: str) -> None:
        self._folder, self._bucket, self._address = folder, bucket, address
        self._endpoint_url = endpoint_url
        clips = folder / "clips"
        if not clips.exists():
            write_clips(clips, 8)
        for path in clips.iterdir():
            self.store("media").put(path.name, path.read_bytes())

    def store(self, name: str) -> Store:
        return Store(f"s3://{self._bucket}/{name}", StoreOptions(self._endpoint_url))

    def start(self, name: str) -> "subprocess.Popen[bytes]":
        models = [word for label, seed in zip(_LABELS, "01", strict=True) for word in (
            "--model", f"{label}=squeezenet1_1", "--weights", f"{label}=random:{seed}")]  # fmt: skip
        command = [
            sys.executable, "-m", "featlib", "extract", f"{self.store('media').url}/", "--output", self.store(name).url,
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

    def progress(self, name: str) -> str:
        """How far a job has come."""
        store = self.store(name)
        for prefix, what in (("features", "published"), (_KEYS.stage, "staged"), (_KEYS.plan, "planned")):
            if store.list(prefix):
                return what
        return "not begun"

    def outcomes(self, name: str) -> dict[tuple[str, str], tuple[object, ...]]:
        """By label and media id: status, class and number of rows."""
        store, found = self.store(name), dict[tuple[str, str], tuple[object, ...]]()
        for label in _LABELS:
            for info in store.list(_KEYS.outcomes(label)):
                for row in read_outcomes(store, info.key).to_pylist():
                    found[label, row["media_id"]] = row["status"], row["error_class"], row["num_rows"]
        return found

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
        """What a reader finds, and what is there twice."""
        store, found, wrong = self.store(name), Features(), []
        for label in _LABELS:
            for info in store.list(_KEYS.features(label)):
                for row in pq.ParquetFile(io.BytesIO(store.get(info.key))).read().to_pylist():
                    key = (label, row["media_id"], row["clip_index"])
                    if key in found:
                        wrong.append(f"{key} is there twice")
                    found[key] = np.array(row["feature"], np.float32)
        return found, wrong

    def verified(self, name: str) -> list[str]:
        media = self.store("media")
        manifests = (read_manifest((f"{media.url}/",), options=media.options) for _ in _LABELS)
        checks = [verify(m, self.store(name), _KEYS, label) for m, label in zip(manifests, _LABELS, strict=True)]
        return [f"featlib verify: {checked.text()}" for checked in checks if not checked.complete]


@dataclass(frozen=True)
class _Truth:
    """What an undisturbed job gives.

    Args:
        frames: By media id, the frames that are decoded of it.
        begin_s: Until the first clip is decoded, from the command on.
        work_s: From then to its end.
    """

    features: Features
    outcomes: dict[tuple[str, str], tuple[object, ...]]
    objects: set[str]
    frames: dict[str, int]
    begin_s: float
    work_s: float

    @classmethod
    def of(cls, job: _Job) -> "_Truth":
        started = time.monotonic()
        process = job.start("calm")
        while process.poll() is None and not _workers("decode actor"):
            time.sleep(_LOOK_S)
        begin_s = time.monotonic() - started
        assert _status(process) == 0, job.log()
        work_s = time.monotonic() - started - begin_s
        features, wrong = job.features("calm")
        wrong += job.verified("calm")
        assert not wrong, wrong
        truth = cls(features, job.outcomes("calm"), job.objects("calm"), job.frames("calm"), begin_s, work_s)
        assert len(truth.outcomes) == len(_LABELS) * len(truth.frames) > 0
        assert {media_id for _, media_id, _ in features} == truth.frames.keys()
        return truth


def torture(folder: Path, total: int, seed: int, first: int = 0) -> Tally:
    """Kills ``total`` times, the victims in turn.

    Args:
        first: Number of the first trial.
    """
    tally = Tally("kills of drivers, actors, tasks and nodes of the real job", step=5)
    folder.mkdir(parents=True)
    with SwiftServer(folder / "swift") as server, _two_nodes(server.environment()) as nodes:
        job = _Job(folder, server.bucket(), nodes.cluster.address, server.endpoint_url)
        truth = _Truth.of(job)
        killed, stopped, progress = Counter[str](), Counter[str](), Counter[str]()
        for number in range(first, first + _MOST_TRIALS * total):
            if tally.count >= total:
                break
            victim = VICTIMS[number % len(VICTIMS)]
            trial = _Trial(job, nodes, f"run-{number}", victim, truth)
            tally.trial(
                f"job --seed {seed} --at {number}", lambda trial=trial, n=number: trial.play(Random(f"{seed} {n}"))
            )
            killed[victim] += trial.num_kills
            stopped[victim] += trial.num_stops
            progress[trial.progress] += victim == "driver" and trial.num_kills
            trial.clear()
        if tally.count < total:
            tally.add(f"job --seed {seed} --kills {total}", 0, [f"only {tally.count} kills came about"])
        missing = [victim for victim in VICTIMS if not killed[victim]] if total >= 2 * len(VICTIMS) else []
        tally.add(f"job --seed {seed} --kills {total}", 0, [f"no {victim} was killed at work" for victim in missing])
    print("kills: " + ", ".join(f"{killed[victim]} {victim}" for victim in VICTIMS))
    print("of drivers, when the output was: " + ", ".join(f"{how} {n}" for how, n in progress.items() if n))
    print("after which the job stopped and was run again: " + ", ".join(f"{n} {v}" for v, n in stopped.items() if n))
    return tally


def outage(folder: Path, seed: int, outage_s: float) -> Tally:
    """The store is away for a while in the middle of the real job, which must not stop."""
    tally = Tally(f"requests of the real job in {outage_s:g} s without any store")
    folder.mkdir(parents=True)
    with SwiftServer(folder / "swift") as server, _two_nodes(server.environment()) as nodes:
        calm, bucket = Weather(seed, 0.0), server.bucket()  # the same media have the same ids
        with FaultProxy(server.endpoint_url, calm) as proxy:
            truth = _Truth.of(_Job(folder, bucket, nodes.cluster.address, proxy.endpoint_url))
        at = Random(f"outage {seed}").randint(calm.count // 3, calm.count // 2)
        weather = Weather(seed, 0.0, at, outage_s)
        with FaultProxy(server.endpoint_url, weather) as proxy:
            job = _Job(folder, bucket, nodes.cluster.address, proxy.endpoint_url)

            def play() -> tuple[int, list[str]]:
                status = _status(job.start("outage"))
                if status:
                    return weather.faults, [f"exit {status}: {job.log()}"]
                wrong = [] if weather.faults else ["no request fell into the outage"]
                return weather.faults, wrong + _wrong(job, "outage", truth)

            tally.trial(f"outage --seed {seed} --seconds {outage_s:g}", play)
    return tally


class _Trial:
    """One job that is killed into once, and run to its end."""

    def __init__(self, job: _Job, nodes: _Nodes, name: str, victim: str, truth: _Truth) -> None:
        self._job, self._nodes, self._name, self._victim, self._truth = job, nodes, name, victim, truth
        self._staged = set[str]()
        self.num_kills = self.num_stops = 0
        self.progress = ""

    def play(self, random: Random) -> tuple[int, list[str]]:
        """Gives the number of kills that came about, and what was wrong."""
        process = self._job.start(self._name)
        try:
            self._kill(process, random)
        finally:
            status = _status(process)
            if self._nodes.second is None:
                self._nodes.add_second()
        wrong = self._mixed() if status == -signal.SIGKILL else []
        if status == 0 and self.num_kills:
            wrong += self._done_again(self._staged, self._job.records(self._name), sum(self._truth.frames.values()))
        while status != 0 and self.num_stops < _MOST_RUNS:
            if status not in (1, -signal.SIGKILL):
                return self.num_kills, [*wrong, f"exit {status}: {self._job.log()}"]
            self.num_stops += 1
            staged, records = self._job.staged(self._name), self._job.records(self._name)
            status = _status(self._job.start(self._name))
            if status == 0:
                wrong += self._done_again(staged, self._job.records(self._name) - records)
        if status != 0:
            return self.num_kills, [*wrong, f"exit {status} after {self.num_stops} more runs: {self._job.log()}"]
        return self.num_kills, wrong + _wrong(self._job, self._name, self._truth)

    def clear(self) -> None:
        store = self._job.store(self._name)
        store.delete([info.key for info in store.list("")])

    def _kill(self, process: "subprocess.Popen[bytes]", random: Random) -> None:
        """Kills once, as soon after a moment of chance as the victim is there and has to do with the job.

        One time in five the driver or the node dies before anything is decoded.
        """
        delay_s = self._truth.begin_s * random.uniform(0.05, 1.0)
        if self._victim not in ("driver", "raylet") or random.random() > _EARLY_SHARE:
            _wait_until(process, lambda: bool(_workers("decode actor")))
            delay_s = self._truth.work_s * random.uniform(0.0, 0.9)
        ends = time.monotonic() + delay_s
        _wait_until(process, lambda: time.monotonic() > ends)
        _wait_until(process, lambda: self._is_killed(process, random))

    def _is_killed(self, process: "subprocess.Popen[bytes]", random: Random) -> bool:
        if not self._victims(process):
            return False
        staged = self._job.staged(self._name)
        victims = self._victims(process)  # they may have ended meanwhile
        if not victims or process.poll() is not None:
            return False
        if self._victim == "raylet":
            self._nodes.kill_second()
        elif not _sent(random.choice(victims)):
            return False
        self._staged, self.num_kills = staged, 1
        if self._victim == "driver":
            process.wait()
            self.progress = self._job.progress(self._name)
        return True

    def _victims(self, process: "subprocess.Popen[bytes]") -> list[int]:
        if self._victim == "driver":
            return [process.pid]
        if self._victim == "raylet":
            return self._nodes.at_work()
        return _workers(self._victim)

    def _mixed(self) -> list[str]:
        """After the driver's death each item must be visible whole, or not at all."""
        found, wrong = self._job.features(self._name)
        visible = {key[:2] for key in found}
        wanted = {key: value for key, value in self._truth.features.items() if key[:2] in visible}
        return wrong + _differences(found, wanted)

    def _done_again(self, staged: set[str], records: set[str], free: int = 0) -> list[str]:
        """Whether the runs of ``records`` decoded more than ``free`` frames and what was not staged."""
        most = free + sum(count for media_id, count in self._truth.frames.items() if media_id not in staged)
        decoded = self._job.decoded(self._name, records)
        return [f"{decoded} frames were decoded, {most} at most were to be"] if decoded > most else []


def _wait_until(process: "subprocess.Popen[bytes]", is_so: Callable[[], bool]) -> None:
    """Or until the process has ended."""
    ends = time.monotonic() + _MOST_S
    while process.poll() is None and not is_so() and time.monotonic() < ends:
        time.sleep(_LOOK_S)


def _status(process: "subprocess.Popen[bytes]") -> int:
    """The exit status of a job, which is ended when it takes too long."""
    try:
        return process.wait(_MOST_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def _workers(victim: str) -> list[int]:
    """Pids of workers of this Ray that have a task of the job in hand; those of others on this machine are no children
    of its processes."""
    return [process.pid for process in psutil.Process().children(recursive=True) if _is(process, victim)]


def _is(process: psutil.Process, victim: str) -> bool:
    if victim == "decoding process":
        try:
            parent = process.parent()
        except psutil.Error:
            return False
        return parent is not None and _is(parent, "decode actor")
    title = _title(process)
    # Ray names a worker by what it does; an actor that waits has the name of its class alone.
    return _WORDS[victim] in title and (victim == "stage task" or title.rstrip().endswith(".submit"))


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


def _sent(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _wrong(job: _Job, name: str, truth: _Truth) -> list[str]:
    """What is not as it was undisturbed, after a job."""
    found, wrong = job.features(name)
    wrong += _differences(found, truth.features) + job.verified(name)
    wrong += [f"{key} was left behind" for key in job.left_behind(name)]
    wrong += [f"objects differ: {keys}" for keys in [job.objects(name) ^ truth.objects] if keys]
    outcomes = job.outcomes(name)
    return wrong + [
        f"the outcome of {key} is {outcomes.get(key)}, not {truth.outcomes.get(key)}"
        for key in outcomes.keys() | truth.outcomes.keys()
        if outcomes.get(key) != truth.outcomes.get(key)
    ]


def _differences(found: Features, truth: Features) -> list[str]:
    wrong = [f"{key} is lost" for key in truth if key not in found]
    wrong += [f"{key} is too many" for key in found if key not in truth]
    for key, value in truth.items():
        if key in found and not np.linalg.norm(found[key] - value) <= 1e-5 * np.linalg.norm(value):
            wrong.append(f"{key} has other values")
    return wrong
