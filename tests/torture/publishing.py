"""Kills in everything between a manifest and published rows: plan, stage, commit, publish, clean up.

For each story (a seed and a phase) the job is run once undisturbed; that is the truth. Then it is run from the same
start again and again, killed at one operation each time, and run once more to its end.
"""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from featlib.layout import Keys
from featlib.manifest import read_manifest
from featlib.shards.doubt import items_in_doubt
from featlib.shards.staging import list_pieces
from featlib.shards.verify import verify
from featlib.storage import Store, StoreOptions
from tests.servers.swift import user_environment
from tests.torture.doom import Point, points
from tests.torture.story import LABELS, PHASES, Story, Values, values_of
from tests.torture.story_server import READY

KEYS = Keys("d")
_KILLED = -9
_STOPPED_CLEANLY = re.compile(r"^featlib\.errors\.(Stopped|Transient)Error: .*\s*\Z", re.MULTILINE)
_LEFT = re.compile(r"^featlib\.errors\.StoppedError: driver .* is at work on dataset", re.MULTILINE)
_BURIED = re.compile(
    r"^featlib\.errors\.StoppedError: the claim of this driver .* another driver took over", re.MULTILINE
)
_OF_DRIVER = ("put features", "put_file features", "put outcomes", "put_file plan", "put_file units", "delete stage")
_SAID = ("status", "error_class", "error_message", "retryable", "num_rows", "uri", "size", "etag", "codec", "attempts")
_OWN = ("stage", "units", "drivers", "doubt")
"""Of a job that is under way; nothing of it is left at the end."""

HOLD_S = 4.0
_MOST_S = 120.0


@dataclass(frozen=True)
class Kill:
    """One kill of one story.

    Args:
        at: Where the run dies.
        again: Where the next run dies, too; None: it lives.
        is_plain: Before the same command goes on, one comes that neither retries nor replaces.
    """

    seed: int
    phase: str
    at: Point
    again: Point | None = None
    is_plain: bool = False

    def __str__(self) -> str:
        again = f" --again '{self.again}'" if self.again else ""
        return f"--seed {self.seed} --phase {self.phase} --at '{self.at}'{again}{' --plain' * self.is_plain}"


@dataclass(frozen=True)
class Played:
    """What came of one kill.

    Args:
        hit: Where runs died.
        operations: Of the last run, which lived.
    """

    hit: tuple[Point, ...]
    wrong: list[str]
    operations: tuple[str, ...] = ()


class Tellers:
    """A process that forks the jobs of stories."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._said = folder / "said.json"
        # What killed jobs leave among the temporary files goes with the folder.
        (folder / "tmp").mkdir()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.story_server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **user_environment(), "TMPDIR": str(folder / "tmp")},
        )  # fmt: skip
        self._is_ready = False

    def wait(self) -> None:
        """Until it has loaded what every job needs: from then on a job begins at once."""
        if not self._is_ready:
            assert self._process.stdout is not None
            said = self._process.stdout.readline().strip()
            assert said == READY, f"it ended before it was ready: {said}"
            self._is_ready = True

    def tell(
        self, story: Story, log: Path, point: Point | None = None, *, is_alone: bool = True, hold_s: float = 0.0,
        stopped: Path | None = None,
    ) -> tuple[int, str]:  # fmt: skip
        """Runs the job of a story; gives its exit status and what it said at its end."""
        self.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._said.unlink(missing_ok=True)
        request = {
            "story": story.to_json(), "point": point and str(point), "is_alone": is_alone, "hold_s": hold_s,
            "log": str(log), "said": str(self._said), "stopped": stopped and str(stopped),
        }  # fmt: skip
        print(json.dumps(request), file=self._process.stdin, flush=True)
        status = int(self._process.stdout.readline())
        return status, self._said.read_text() if self._said.exists() else ""

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


@dataclass(frozen=True)
class Rows:
    """What a reader finds in an output.

    Args:
        features: What rows hold, by label, media id and clip.
        outcomes: By label and media id, what is said of the item and of its file; the number of attempts comes last.
        doubted: Labels and media ids whose outcomes are in doubt.
        objects: Keys of everything published.
        twice: Keys of rows that came more than once.
    """

    features: dict[tuple[str, str, int], Values]
    outcomes: dict[tuple[str, str], tuple[Any, ...]]
    doubted: frozenset[tuple[str, str]]
    objects: tuple[str, ...]
    twice: tuple[object, ...]

    @classmethod
    def of(cls, store: Store) -> "Rows":
        features, outcomes, objects = list[tuple[Any, Any]](), list[tuple[Any, Any]](), []
        for label in LABELS:
            for info in store.list(KEYS.features(label)):
                objects.append(info.key)
                for row in _read(store, info.key):
                    features.append(((label, row["media_id"], row["clip_index"]), values_of(row)))
            for info in store.list(KEYS.outcomes(label)):
                objects.append(info.key)
                for row in _read(store, info.key):
                    said = tuple(row[name] for name in _SAID)
                    outcomes.append(((label, row["media_id"]), said))
        counts = Counter(key for key, _ in [*features, *outcomes])
        twice = tuple(key for key, n in counts.items() if n > 1)
        doubted = ((label, m) for label in LABELS for _, ids in items_in_doubt(store, KEYS, label) for m in ids)
        return cls(dict(features), dict(outcomes), frozenset(doubted), tuple(sorted(objects)), twice)


def brief(said: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of what an outcome says: status, class, number of rows and attempts."""
    return tuple(
        dict(zip(_SAID, said, strict=True))[name] for name in ("status", "error_class", "num_rows", "attempts")
    )


def _read(store: Store, key: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.ParquetFile(io.BytesIO(store.get(key))).read().to_pylist()
    return rows


@dataclass(frozen=True)
class Scene:
    """A story that is about to be told, and how it ends undisturbed.

    Args:
        before: What stood in the output before.
        operations: That the undisturbed job took.
    """

    story: Story
    before: Rows
    truth: Rows
    operations: tuple[str, ...]

    @property
    def committed(self) -> list[Point]:
        """After each put, and each deletion of what was staged."""
        made = [point for point in points(self.operations) if point.is_after]
        return [point for point in made if point.of.startswith(_OF_DRIVER)]

    def may_be_redone(self, media_id: str) -> bool:
        """Whether a run after the commit takes the item up once more: with ``--retry-failed``, what fails again."""
        is_failed = self.truth.outcomes[LABELS[0], media_id][0] == "failed"
        return is_failed and self.story.phase == "retried"


class Stage:
    """Where one story after the other is set up and played.

    Args:
        output: Folder or URL under which outputs are made.
        tellers: Some that are there already; None: its own.
    """

    def __init__(
        self,
        folder: Path,
        output: str | None = None,
        endpoint_url: str | None = None,
        tellers: Tellers | None = None,
    ) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._output, self._endpoint_url = output or str(folder / "outputs"), endpoint_url
        self.tellers = tellers or Tellers(folder / "teller")
        self._owns_tellers = tellers is None

    def close(self) -> None:
        if self._owns_tellers:
            self.tellers.close()

    def store(self, name: str) -> Store:
        return Store(f"{self._output}/{name}", StoreOptions(self._endpoint_url))

    def scene(self, seed: int, phase: str) -> Scene:
        """Sets a story up.

        Raises:
            AssertionError: The undisturbed job is wrong; its story is named.
        """
        try:
            return self._scene(seed, phase)
        except AssertionError as error:
            raise AssertionError(f"undisturbed, --seed {seed} --phase {phase}: {error}") from error

    def _scene(self, seed: int, phase: str) -> Scene:
        media = self.folder / f"media-{seed}"
        start, calm = self.store("start"), self.store("calm")
        _empty(start)
        for earlier in PHASES[: PHASES.index(phase)]:
            self._run(Story(seed, earlier, str(media), start.url, self._endpoint_url))
        story = Story(seed, phase, str(media), calm.url, self._endpoint_url)
        story.tell()
        copy_output(start, calm)
        said = self._run(story)
        truth = Rows.of(calm)
        ended = Counter(label for label, _ in truth.outcomes)
        assert ended == dict.fromkeys(LABELS, len(story.names)), f"not every item ended: {ended}"
        assert not truth.twice, f"rows are there twice: {truth.twice}"
        expected = story.expected()
        assert truth.features == expected.rows, "what is published is what the media say"
        statuses = {key: status for key, (status, *_) in truth.outcomes.items()}
        assert statuses == expected.statuses, "statuses are those of the media"
        return Scene(story, Rows.of(start), truth, tuple(said["operations"]))

    def _run(self, story: Story) -> dict[str, Any]:
        story.tell()
        status, said = self.tellers.tell(story, self.folder / "calm.log")
        assert status == 0, f"seed {story.seed}, {story.phase}: {said}"
        answer: dict[str, Any] = json.loads(said)
        return answer

    def play(self, scene: Scene, kill: Kill) -> Played:
        """Kills and goes on to the end."""
        store = self.store("killed")
        copy_output(self.store("start"), store)
        story = replace(scene.story, output=store.url)
        staged, hit, said = Counter[str](), list[Point](), ""
        runs = [(kill.at, story), (kill.again, story), (None, replace(story, is_plain=True)), (None, story)]
        wanted = (True, kill.again is not None, kill.is_plain, True)
        for (point, told), is_wanted in zip(runs, wanted, strict=True):
            if not is_wanted:
                continue
            log = self.folder / "killed.log"
            log.unlink(missing_ok=True)
            status, said = self.tellers.tell(told, log, point)
            staged += Counter(log.read_text().splitlines() if log.exists() else ())
            if status == _KILLED and point is not None:
                hit.append(point)
                # Killed right after a put, it had no time to say that the piece is there.
                staged |= Counter(_staged(store))
                wrong = _between(Rows.of(store), scene)
                if wrong:
                    return Played(tuple(hit), wrong)
            elif status:
                return Played(tuple(hit), [f"exit {status}: {said}"])
            elif point is not None:
                break  # it had ended before it came to that place
            elif told.is_plain:
                found = Rows.of(store)
                wrong = _between(found, scene) + [f"{key} is still in doubt" for key in found.doubted]
                if wrong:
                    return Played(tuple(hit), [f"after a plain run: {line}" for line in wrong])
        # It may publish an item for one label; for the other it is done again, and for both.
        wrong = wrong_at_end(store, scene, more=int(kill.is_plain))
        redone = [line for line, times in staged.items() if times > 1 and not scene.may_be_redone(line.split()[0])]
        if redone and not kill.is_plain:  # it clears away what it does not ask for
            wrong.append(f"done again though it was staged: {', '.join(redone)}")
        return Played(tuple(hit), wrong, tuple(json.loads(said)["operations"]))

    def play_through(self, scene: Scene, endpoint_url: str, most_runs: int) -> tuple[int, list[str]]:
        """Plays with the store at another endpoint, again and again while it stops cleanly; gives the number of runs
        and what was wrong."""
        store = self.store("faulty")
        copy_output(self.store("start"), store)
        story = replace(scene.story, output=store.url, endpoint_url=endpoint_url)
        said = ""
        for number in range(1, most_runs + 1):
            status, said = self.tellers.tell(story, self.folder / "faulty.log")
            if status == 0:
                return number, wrong_at_end(store, scene)
            if not _STOPPED_CLEANLY.search(said):
                return number, [f"exit {status}: {said}"]
        return most_runs, [f"not done after {most_runs} runs: {said}"]

    def play_rivals(
        self, scene: Scene, rival: Tellers, delay_s: float, hold_s: float = HOLD_S
    ) -> tuple[bool, list[str]]:
        """Two drivers, the second so much later than the first; says whether they met, and what was wrong.

        Where they meet, one must do the work, the other must leave with a word. Where the first works for as long as
        it does by default and the second comes within a second, they must meet.

        Args:
            hold_s: Each works for so long before its first result.
        """
        store = self.store("rivals")
        copy_output(self.store("start"), store)
        story = replace(scene.story, output=store.url)
        logs = [self.folder / name for name in ("first.log", "second.log")]
        for log in logs:
            log.unlink(missing_ok=True)
        rival.wait()  # its own was used for the scene
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(self.tellers.tell, story, logs[0], is_alone=False, hold_s=hold_s)
            time.sleep(delay_s)
            second = pool.submit(rival.tell, story, logs[1], is_alone=False, hold_s=hold_s)
            ended = [first.result(), second.result()]
        wrong = [f"exit {status}: {said}" for status, said in ended if status and not _LEFT.search(said)]
        has_met = any(status for status, _ in ended)
        if all(status for status, _ in ended):
            wrong.append("neither did the work")
        if not has_met and hold_s >= HOLD_S and delay_s <= 1.0:
            wrong.append("neither left: they did not meet")
        did = [set(log.read_text().splitlines()) if log.exists() else set() for log in logs]
        wrong += [f"both staged {item}" for item in did[0] & did[1]]
        return has_met, wrong + wrong_at_end(store, scene)

    def play_sleeper(self, scene: Scene, rival: Tellers, point: Point) -> list[str]:
        """The first driver is stopped for longer than the lease; another takes over and ends; then the first goes on,
        and must leave.

        What it was about to stage it may stage yet: only that stays behind, and the job of the next phase, which
        retries and replaces, must not take it for its own.

        Args:
            point: After some operation.
        """
        store = self.store("sleeper")
        copy_output(self.store("start"), store)
        story = replace(scene.story, output=store.url)
        logs = [self.folder / name for name in ("first.log", "second.log")]
        stopped = self.folder / "stopped"
        for path in (*logs, stopped):
            path.unlink(missing_ok=True)
        rival.wait()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(self.tellers.tell, story, logs[0], point, is_alone=False, stopped=stopped)
            ends = time.monotonic() + _MOST_S
            while not stopped.exists():
                if first.done() or time.monotonic() > ends:
                    return [f"never came to {point}: {first.result(timeout=_MOST_S)}"]
                time.sleep(0.02)
            try:
                status, said = rival.tell(story, logs[1], is_alone=False)
                left = [info.key for prefix in (KEYS.stage, KEYS.units) for info in store.list(prefix)]
            finally:
                os.kill(int(stopped.read_text()), signal.SIGCONT)
            woken, word = first.result(timeout=_MOST_S)
        wrong = [] if status == 0 else [f"the one that took over: exit {status}: {said}"]
        wrong += [f"the one that took over left {key} behind" for key in left]
        has_work = point.of.startswith("put")  # else it was clearing up, and may come to its end
        if not _BURIED.search(word) and (woken or has_work):
            wrong.append(f"the one that woke up did not leave: exit {woken}: {word}")
        return wrong + wrong_at_end(store, scene, stray=("drivers", "units")) + self._wrong_later(story, store, rival)

    def _wrong_later(self, story: Story, store: Store, tellers: Tellers) -> list[str]:
        """What is wrong after the job of the next phase; the media are as before then."""
        later = replace(story, phase=PHASES[min(PHASES.index(story.phase) + 1, len(PHASES) - 1)])
        later.tell()
        try:
            status, said = tellers.tell(later, self.folder / "later.log")
            if status:
                return [f"the next phase: exit {status}: {said}"]
            found, expected = Rows.of(store), later.expected()
        finally:
            story.tell()
        statuses = {key: status for key, (status, *_) in found.outcomes.items()}
        wrong = [f"the next phase: {key} is there twice" for key in found.twice]
        for what, now, wanted in (
            ("rows", found.features, expected.rows), ("outcomes", statuses, expected.statuses)
        ):  # fmt: skip
            other = sorted(key for key in now.keys() | wanted.keys() if now.get(key) != wanted.get(key))
            wrong += [f"the next phase: {what} of {other} are wrong"] if other else []
        return wrong + [f"the next phase left {key} behind" for key in _stray(store, _OWN)]


def _staged(store: Store) -> list[str]:
    """What lies staged, as a job says of it."""
    pieces = [piece for shard in list_pieces(store, KEYS).values() for piece in shard]
    return [f"{report.media_id} {report.segment.k}" for piece in pieces for report in piece.reports]


def _between(found: Rows, scene: Scene) -> list[str]:
    """After a kill every item is visible whole, as it was before or as it will be in the end, and so is its outcome.
    Where one is old and the other new, the item is in doubt."""
    wrong = [f"{key} is there twice" for key in found.twice]
    before, now, after = (_by_item(rows.features) for rows in (scene.before, found, scene.truth))
    for key, rows in now.items():
        if rows not in (before.get(key), after.get(key)):
            wrong.append(f"{key} is neither old nor new: {rows}")
    wrong += [f"{key} was visible and is gone" for key in before if key in after and key not in now]
    for key, said in found.outcomes.items():
        old, new = scene.before.outcomes.get(key), scene.truth.outcomes.get(key)
        if said != old and (new is None or not _is_outcome(scene, key, said, new)):
            wrong.append(f"the outcome of {key} is neither old nor new: {said}")
        is_old, is_new = now.get(key) == before.get(key), now.get(key) == after.get(key)
        if not (is_new if said != old else is_old) and key not in found.doubted:
            wrong.append(f"{key}: rows of one version stand under the outcome of another: {said}")
    return wrong + [f"the outcome of {key} is gone" for key in scene.before.outcomes if key not in found.outcomes]


def _by_item(features: dict[tuple[str, str, int], Values]) -> dict[tuple[str, str], dict[int, object]]:
    items: dict[tuple[str, str], dict[int, object]] = {}
    for (label, media_id, clip), values in features.items():
        items.setdefault((label, media_id), {})[clip] = values
    return items


def _is_outcome(
    scene: Scene, key: tuple[str, str], said: tuple[Any, ...], wanted: tuple[Any, ...], more: int = 0
) -> bool:
    """Whether an outcome is the wanted one, but for so many more attempts, and those of what is taken up once more by
    every run."""
    if scene.may_be_redone(key[1]):
        return said[:-1] == wanted[:-1] and said[-1] >= wanted[-1]
    return said[:-1] == wanted[:-1] and wanted[-1] <= said[-1] <= wanted[-1] + more


def wrong_at_end(store: Store, scene: Scene, stray: Sequence[str] = _OWN, more: int = 0) -> list[str]:
    """What differs from the undisturbed end.

    Args:
        stray: Of what nothing may be left.
        more: So many more attempts may have been made at an item.
    """
    found, truth, wrong = Rows.of(store), scene.truth, []
    wrong += [f"{key} is there twice" for key in found.twice]
    wrong += [f"{key} is lost" for key in truth.features if key not in found.features]
    wrong += [f"{key} is too many" for key in found.features if key not in truth.features]
    wrong += [f"{key} has other values" for key, v in found.features.items() if truth.features.get(key, v) != v]
    wrong += [f"the outcome of {key} is lost" for key in truth.outcomes if key not in found.outcomes]
    for key, said in found.outcomes.items():
        if key not in truth.outcomes or not _is_outcome(scene, key, said, truth.outcomes[key], more):
            wrong.append(f"the outcome of {key} is {said}, not {truth.outcomes.get(key)}")
    if found.objects != truth.objects:
        wrong.append(f"objects differ: {set(found.objects) ^ set(truth.objects)}")
    wrong += [f"{key} was left behind" for key in _stray(store, stray)]
    for label in LABELS:
        checked = verify(read_manifest(tuple(scene.story.config()["manifest"])), store, KEYS, label, max_failed=1.0)
        if not checked.complete:
            wrong.append(f"featlib verify {label}: {checked.text()}")
    return wrong


def _stray(store: Store, kinds: Sequence[str]) -> list[str]:
    return [info.key for kind in kinds for info in store.list(f"{KEYS.own}/{kind}")]


def _empty(store: Store) -> None:
    if store.is_local:
        shutil.rmtree(store.url, ignore_errors=True)
    else:
        store.delete([info.key for info in store.list("")])


def copy_output(source: Store, target: Store) -> None:
    _empty(target)
    if source.is_local:
        shutil.copytree(source.url, target.url) if Path(source.url).exists() else None
        return
    for info in source.list(""):
        target.put(info.key, source.get(info.key))


@contextmanager
def stage_in(
    folder: Path, output: str | None = None, endpoint_url: str | None = None, tellers: Tellers | None = None
) -> Iterator[Stage]:
    stage = Stage(folder, output, endpoint_url, tellers)
    try:
        yield stage
    finally:
        stage.close()
