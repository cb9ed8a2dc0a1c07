"""Hostile and broken media: one outcome each, nobody else harmed, nothing opened that they name."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

import featlib
from featlib.errors import MEDIA_ERROR_CLASSES
from tests.e2e.clips import write_clips
from tests.e2e.rows import check_same_rows, features_by_key
from tests.e2e.small import POOLS
from tests.media.make import decoded, write_video
from tests.torture.hostile import ELSEWHERE, corpus, mutants

pytestmark = pytest.mark.ray

_MODELS = [{"network": "squeezenet1_1", "weights": "random:0", "frame_sampling": "uniform:4"}]
_MOST_S = 30.0
_MUTANTS = 60


class Honeypot:
    """A listener on loopback that writes down who asks."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        honeypot = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                honeypot.asked.append(self.path)
                self.send_error(404)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

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
def files(tmp_path_factory: pytest.TempPathFactory, canary: Path, honeypot: Honeypot) -> list[Path]:
    folder = tmp_path_factory.mktemp("hostile")
    return [*corpus(folder / "files", canary, honeypot.url), *mutants(folder / "mutants", _MUTANTS)]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_clips(tmp_path_factory.mktemp("good"), 3)


def _run(output: Path, manifest: Path, media: list[Path]) -> featlib.Summary:
    rows = [f"{path},m{i}-{path.name.replace('%', '_')}\n" for i, path in enumerate(media)]
    manifest.write_text("uri,media_id\n" + "".join(rows))
    config = featlib.ExtractConfig(
        manifest=[str(manifest)], output=str(output), dataset="d", models=_MODELS, max_failed=1.0,
        decode_deadline_s=_MOST_S, decode_stall_s=10, **POOLS,
    )  # fmt: skip
    return featlib.extract(config)


@pytest.fixture(scope="module")
def done(
    files: list[Path], good: list[Path], ray_cluster: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, featlib.Summary]:
    output = tmp_path_factory.mktemp("out")
    mixed = [*good[:1], *files[: len(files) // 2], *good[1:2], *files[len(files) // 2 :], *good[2:]]
    return output, _run(output / "features-of-all", output / "all.csv", mixed)


def test_there_are_over_a_hundred_named_ones_and_the_mutants(files: list[Path]) -> None:
    named = [path for path in files if not path.name.startswith("mutant-")]
    assert len(named) > 100
    assert len(files) - len(named) == _MUTANTS
    assert len({path.name for path in files}) == len(files)


def test_every_file_has_one_outcome_and_the_job_ends_well(
    done: tuple[Path, featlib.Summary], files: list[Path], good: list[Path]
) -> None:
    output, summary = done
    outcomes = featlib.open_features(str(output / "features-of-all"), dataset="d", model="squeezenet1_1").outcomes()
    assert summary.exit_code == 0
    assert len(outcomes) == len(set(outcomes.media_id)) == len(files) + len(good)
    assert set(outcomes.status) <= {"ok", "partial", "failed"}
    bad = outcomes[outcomes.status != "ok"]
    assert set(bad.error_class) <= set(MEDIA_ERROR_CLASSES)
    assert not bad.error_message.str.contains("\n").any()
    # Whatever takes longer than the limits below has the class timeout, or takes its worker with it.
    slow = outcomes[outcomes.error_class.isin(["timeout", "worker_died", "out_of_memory"]) | (outcomes.attempts > 1)]
    told = slow[["media_id", "error_class", "error_message", "attempts"]].to_string()
    names = [media_id.partition("-")[2] for media_id in slow.media_id]
    assert names == ["thin-1x20000.png"], told  # its short side at 256, as the preset says, it has four gigabytes
    assert set(slow.error_class) == {"out_of_memory"}, told


def test_what_they_name_was_never_opened(done: tuple[Path, featlib.Summary], honeypot: Honeypot) -> None:
    output, _ = done
    outcomes = featlib.open_features(str(output / "features-of-all"), dataset="d", model="squeezenet1_1").outcomes()
    kinds = ("hls", "concat", "session", "dash", "image", "asx", "pls", "smil")
    lists = outcomes[outcomes.media_id.str.match(rf"m\d+-({'|'.join(kinds)})")]
    assert len(lists) == 70
    assert set(lists.status) == {"failed"}, "the canary is a sound video: whoever opens it gets frames"
    assert honeypot.asked == []


def test_samples_that_lie_elsewhere_were_not_fetched(done: tuple[Path, featlib.Summary], files: list[Path]) -> None:
    """FFmpeg itself, when it is allowed to, reads them from the other file."""
    elsewhere = [path for path in files if path.name.startswith(ELSEWHERE)]
    assert len(elsewhere) == 4
    for path in elsewhere:
        with av.open(str(path), options={"enable_drefs": "1", "use_absolute_path": "1"}) as container:
            reached = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        there = decoded(path.parent.parent / "sound" / f"sound{path.suffix}")
        assert len(reached) == len(there) > 0
        assert all(map(np.array_equal, reached, there)), path.name
    outcomes = featlib.open_features(str(done[0] / "features-of-all"), dataset="d", model="squeezenet1_1").outcomes()
    mine = outcomes[outcomes.media_id.str.contains(ELSEWHERE)]
    assert len(mine) == 4
    assert set(mine.status) == {"failed"}
    assert set(mine.num_rows) == {0}


def test_the_good_ones_are_as_if_they_had_been_alone(
    done: tuple[Path, featlib.Summary], good: list[Path], tmp_path: Path
) -> None:
    alone = _run(tmp_path / "alone", tmp_path / "alone.csv", good)
    assert alone.media == {"ok": len(good)}
    names = {path.name for path in good}
    mine = {key: v for key, v in features_by_key(done[0] / "features-of-all").items() if key[1] in names}
    check_same_rows(mine, features_by_key(tmp_path / "alone"), tolerance=0.0)
