"""Hostile and broken media: one outcome each, nobody else harmed, nothing opened that they name."""

import socket
import socketserver
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pandas as pd
import psutil
import pytest

import featlib
from featlib.job import run_job
from featlib.progress import SilentReporter
from tests.e2e.clips import write_clips
from tests.e2e.rows import check_same_rows, rows_by_key
from tests.e2e.small import POOLS
from tests.media.make import decoded, write_video
from tests.torture import measured
from tests.torture.hostile import ELSEWHERE, LAWFUL_CLASSES, corpus, mutants

pytestmark = pytest.mark.ray

_MODELS = [{"network": "squeezenet1_1", "weights": "random:0", "frame_sampling": "uniform:4"}]
_MOST_S = 30.0
_MOST_MB = 2048
_MOST_ACTOR_MB = 512  # 200 of its own, and the pixels of a unit in a few forms
_MUTANTS = 60
_UNSEEN = {
    "cut-50.ts": "between two packets; the container has no end, no length and no number of frames",
    "cut-50.mpg": "nothing says how long it is, and the one picture that lacks bytes is none of the four wanted",
}


class Honeypot:
    """A listener on loopback that writes down every connection, and what is said first, if anything is."""

    def __init__(self) -> None:
        accepted, said, changed = self._accepted, self._said, self._changed = [], {}, threading.Condition()

        class Handler(socketserver.StreamRequestHandler):
            timeout = 5.0

            def handle(self) -> None:
                with suppress(OSError):
                    said[self.client_address] = self.rfile.readline(1000).decode("latin-1").strip()
                    self.wfile.write(b"HTTP/1.0 404 Not Found\r\n\r\n")

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

            def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
                connection, address = super().get_request()
                with changed:
                    accepted.append(address)
                    changed.notify_all()
                return connection, address

        self._own: set[int] = set()
        self._server = Server(("127.0.0.1", 0), Handler)
        self.address: tuple[str, int] = self._server.server_address[:2]
        self.url = "http://{}:{}".format(*self.address)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def asked(self) -> list[str]:
        """What was said first on each connection until now; those of this method left out."""
        before = len(self._accepted)
        with socket.create_connection(self.address) as last, self._changed:  # all others are accepted before it
            mine = last.getsockname()
            assert self._changed.wait_for(lambda: mine in self._accepted[before:], _MOST_S)
        self._own.add(self._accepted.index(mine, before))
        return [self._said.get(who, "nothing yet") for i, who in enumerate(self._accepted) if i not in self._own]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def honeypot() -> Iterator[Honeypot]:
    honeypot = Honeypot()
    yield honeypot
    honeypot.close()


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound video under a name that nobody was told to read: opened by mistake, it would give frames."""
    return write_video(tmp_path_factory.mktemp("secret") / "canary.ts", frames=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def files(folder: Path, canary: Path, honeypot: Honeypot) -> list[Path]:
    return [*corpus(folder / "files", canary, honeypot.url), *mutants(folder / "mutants", _MUTANTS)]


@pytest.fixture(scope="module")
def good(folder: Path) -> list[Path]:
    return write_clips(folder / "good", 3)


@dataclass
class Job:
    """A job over bad files and good ones.

    Args:
        actors: The most resident memory that each process of a decoding actor has had, in bytes, by its id.
    """

    output: Path
    summary: featlib.Summary
    actors: dict[int, int]


def _run(output: Path, manifest: Path, media: list[Path]) -> Job:
    rows = [f"{path},{_id(i, path)}\n" for i, path in enumerate(media)]
    manifest.write_text("uri,media_id\n" + "".join(rows))
    config = featlib.ExtractConfig(
        manifest=[str(manifest)], output=str(output), dataset="d", models=_MODELS, max_failed=1.0,
        decode_deadline_s=_MOST_S, decode_stall_s=10, decode_memory_mb=_MOST_MB, **POOLS,
    )  # fmt: skip
    actors: dict[int, int] = {}

    def look(event: str, what: str) -> None:
        if event == "unit_staged":  # so it was decoded, by an actor that is still there
            actors.update(_sizes_of_decoding_actors())

    with SilentReporter() as shown:
        return Job(output, run_job(config, shown, look, decode=measured.DECODE), actors)


def _id(place: int, path: Path) -> str:
    return f"m{place}-{path.name.replace('%', '_')}"


def _sizes_of_decoding_actors() -> Iterator[tuple[int, int]]:
    """Id and VmHWM of those of this session's Ray."""
    for process in psutil.Process().children(recursive=True):
        try:
            is_one = any("_DecodeActor" in word for word in process.cmdline())
            status = Path(f"/proc/{process.pid}/status").read_text() if is_one else ""
        except (psutil.Error, OSError):  # it has ended meanwhile
            continue
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                yield process.pid, int(line.split()[1]) << 10


@pytest.fixture(scope="module")
def mixed(files: list[Path], good: list[Path]) -> list[Path]:
    return [*good[:1], *files[: len(files) // 2], *good[1:2], *files[len(files) // 2 :], *good[2:]]


@pytest.fixture(scope="module")
def done(mixed: list[Path], ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Job:
    output = tmp_path_factory.mktemp("out")
    return _run(output / "features-of-all", output / "all.csv", mixed)


def _outcomes(job: Job) -> pd.DataFrame:
    return featlib.open_features(str(job.output), dataset="d", model="squeezenet1_1").outcomes()


def test_there_are_over_a_hundred_named_ones_and_the_mutants(files: list[Path]) -> None:
    named = [path for path in files if not path.name.startswith("mutant-")]
    assert len(named) > 100
    assert len(files) - len(named) == _MUTANTS
    assert len({path.name for path in files}) == len(files)


def test_every_file_has_one_outcome_and_the_job_ends_well(done: Job, mixed: list[Path]) -> None:
    outcomes = _outcomes(done)
    assert done.summary.exit_code == 0
    assert len(outcomes) == len(set(outcomes.media_id)) == len(mixed)
    assert set(outcomes.status) <= {"ok", "partial", "failed"}
    bad = outcomes[outcomes.status != "ok"]
    told = bad[~bad.error_class.isin(LAWFUL_CLASSES)][["media_id", "error_class", "error_message"]]
    assert told.empty, told.to_string()
    assert not bad.error_message.str.contains("\n").any()
    costly = outcomes[outcomes.error_class.isin(["timeout", "worker_died", "out_of_memory"]) | (outcomes.attempts > 1)]
    told = costly[["media_id", "error_class", "error_message", "attempts"]].to_string()
    names = [media_id.partition("-")[2] for media_id in costly.media_id]
    assert names == ["thin-1x20000.png"], told  # its short side at 256, as the preset says, it has four gigabytes
    assert set(costly.error_class) == {"out_of_memory"}, told


def test_what_was_cut_is_not_ok(done: Job, files: list[Path]) -> None:
    """At 99 % some lack no more than an index or padding."""
    cut = [path.name for path in files if path.name.startswith("cut-") and not path.name.startswith("cut-99")]
    assert len(cut) == 4 * 15
    outcomes = _outcomes(done)
    is_ok = outcomes[outcomes.status == "ok"].media_id.str.partition("-")[2]
    assert set(is_ok) & set(cut) == set(_UNSEEN)
    assert next(path for path in files if path.name == "cut-50.ts").stat().st_size % 188 == 0


def test_nothing_took_longer_or_more_than_the_job_allows(done: Job, mixed: list[Path]) -> None:
    """As the decoding processes measured it themselves, in seconds on the wall and in what the kernel gave them."""
    calls, unended = measured.read(measured.place_of(mixed[0]))
    assert not unended, "their process died of them, or was ended"
    assert {call.media_id for call in calls} >= {_id(i, path) for i, path in enumerate(mixed)}
    assert not measured.excesses(calls, _MOST_S, _MOST_MB << 20)
    assert done.actors
    assert max(done.actors.values()) <= _MOST_ACTOR_MB << 20


def test_the_honeypot_notes_whoever_comes() -> None:
    methods, honeypot = ("GET", "HEAD", "POST"), Honeypot()
    for method in methods:
        with pytest.raises(OSError):
            urllib.request.urlopen(urllib.request.Request(f"{honeypot.url}/a", method=method))
    assert honeypot.asked() == [f"{method} /a HTTP/1.1" for method in methods]
    socket.create_connection(honeypot.address).close()
    assert len(honeypot.asked()) == len(methods) + 1
    honeypot.close()


def test_what_they_name_was_never_opened(done: Job, honeypot: Honeypot) -> None:
    outcomes = _outcomes(done)
    kinds = ("hls", "concat", "session", "dash", "image", "asx", "pls", "smil")
    lists = outcomes[outcomes.media_id.str.match(rf"m\d+-({'|'.join(kinds)})")]
    assert len(lists) == 70
    assert set(lists.status) == {"failed"}, "the canary is a sound video: whoever opens it gets frames"
    assert honeypot.asked() == []


def test_samples_that_lie_elsewhere_were_not_fetched(done: Job, files: list[Path]) -> None:
    """FFmpeg itself, when it is allowed to, reads them from the other file."""
    elsewhere = [path for path in files if path.name.startswith(ELSEWHERE)]
    assert len(elsewhere) == 4
    for path in elsewhere:
        with av.open(str(path), options={"enable_drefs": "1", "use_absolute_path": "1"}) as container:
            reached = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        there = decoded(path.parent.parent / "sound" / f"sound{path.suffix}")
        assert len(reached) == len(there) > 0
        assert all(map(np.array_equal, reached, there)), path.name
    outcomes = _outcomes(done)
    mine = outcomes[outcomes.media_id.str.contains(ELSEWHERE)]
    assert len(mine) == 4
    assert set(mine.status) == {"failed"}
    assert set(mine.num_rows) == {0}


def test_the_good_ones_are_as_if_they_had_been_alone(done: Job, good: list[Path], tmp_path: Path) -> None:
    alone = _run(tmp_path / "alone", tmp_path / "alone.csv", good)
    assert alone.summary.media == {"ok": len(good)}
    names = {path.name for path in good}
    mine = {key: v for key, v in rows_by_key(done.output).items() if key[1] in names}
    check_same_rows(mine, rows_by_key(alone.output), tolerance=0.0)
