"""Flipped bits in what a killed run left: the next run must end with the truth, or refuse and name the object."""

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from featlib.manifest import read_manifest
from featlib.shards.verify import verify
from featlib.storage import Store
from featlib.storage.urls import split_s3
from tests.servers.faults import flipped
from tests.torture.doom import points
from tests.torture.publishing import KEYS, Scene, Stage, copy_output, wrong_at_end
from tests.torture.story import LABELS, PHASES, Story
from tests.torture.tally import Tally

_FLIPS_A_SCENE = 10
_KILLED = -9
_KILLS = 5
_SELDOM, _OFTEN = ("alive", "claim", "runs", "units"), 4  # times as often is a bit of another kind flipped
_REFUSED = re.compile(r"^featlib\.errors\.(Config|Stopped|Transient|Damaged)Error: ([^\n]*)\n?\Z", re.MULTILINE)

Client = Any
"""Of boto3."""


@dataclass(frozen=True)
class Raw:
    """Objects of a store as the disks below it hold them: what is changed here keeps its metadata.

    Args:
        client: Of the object store; None: it is a folder.
    """

    store: Store
    client: Client | None = None

    def read(self, key: str) -> bytes | None:
        """None: there is no such object."""
        if self.client is None:
            path = Path(self.store.url) / key
            return path.read_bytes() if path.exists() else None
        try:
            data: bytes = self.client.get_object(**self._place(key))["Body"].read()
        except self.client.exceptions.NoSuchKey:
            return None
        return data

    def write(self, key: str, data: bytes) -> None:
        if self.client is None:
            (Path(self.store.url) / key).write_bytes(data)
            return
        metadata = self.client.head_object(**self._place(key))["Metadata"]
        self.client.put_object(**self._place(key), Body=data, Metadata=metadata)

    def _place(self, key: str) -> dict[str, str]:
        bucket, name = split_s3(f"{self.store.url}/{key}")
        return {"Bucket": bucket, "Key": name}


def after_kills(
    stage: Stage, total: int, seed: int, endpoint_url: str | None = None, without: Collection[str] = ()
) -> tuple[Tally, Counter[str]]:
    """Kills a run, flips a bit of any object that it left, and goes on; gives also how often what came of a flip in
    which kind of object.

    So many flips in one scene, then in the next; ``seed`` is the number of the first flip.

    Args:
        endpoint_url: Of the object store that the stage is in, if it is.
        without: Kinds of objects that are left alone.
    """
    where = "on a disk" if endpoint_url is None else "in an object store"
    tally, ends = Tally(f"bits flipped in what killed runs left, {where}"), Counter[str]()
    client = _client(endpoint_url) if endpoint_url else None
    scene_number = -1
    for number in range(seed, seed + total):
        if scene_number != number // _FLIPS_A_SCENE:
            scene_number = number // _FLIPS_A_SCENE
            scene = stage.scene(scene_number, PHASES[scene_number % len(PHASES)])
        trial = _Trial(stage, scene, Random(f"resume {number}"), client)
        tally.trial(f"flips --seed {number} --kills 1", partial(trial.play, without, ends))
    return tally, ends


def _client(endpoint_url: str) -> Client:
    import boto3

    return boto3.client("s3", endpoint_url=endpoint_url)


def told(ends: Counter[str]) -> str:
    """A line for each kind of object and what came of flips in it."""
    return "\n".join(f"  {count:4} {what}" for what, count in sorted(ends.items()))


@dataclass(frozen=True)
class _Flip:
    """A bit that is another in the object ``key``, which was ``whole`` and is ``spoilt``."""

    key: str
    bit: int
    whole: bytes
    spoilt: bytes


class _Trial:
    """A run that was killed, and what becomes of it."""

    def __init__(self, stage: Stage, scene: Scene, random: Random, client: Client | None) -> None:
        self._stage, self._scene, self._random = stage, scene, random
        self._store = stage.store("flipped")
        self._raw = Raw(self._store, client)
        self._story = replace(scene.story, output=self._store.url)

    def play(self, without: Collection[str], ends: Counter[str]) -> tuple[int, list[str]]:
        """Gives the number of flips, and what was wrong; counts in ``ends`` what came of it."""
        flip = self._flip(without)
        if flip is None:
            return 0, ["nothing was left to flip"]
        end, wrong = self._go_on(flip)
        ends[f"{_kind(flip.key)}: {end}"] += 1
        story = self._scene.story
        where = f"story {story.seed}, {story.phase}, bit {flip.bit} of {flip.key}"
        return 1, [f"{where}: {text}" for text in wrong]

    def _flip(self, without: Collection[str]) -> _Flip | None:
        """Kills a run and flips a bit in what it left. None: runs left nothing else than ``without``."""
        for _ in range(_KILLS):
            copy_output(self._stage.store("start"), self._store)
            if _killed(self._stage, self._scene, self._story, self._random) != _KILLED:
                continue  # it found less to do than the undisturbed run
            by_kind: dict[str, list[str]] = {}
            for info in self._store.list(""):
                if info.size and _kind(info.key) not in without:
                    by_kind.setdefault(_kind(info.key), []).append(info.key)
            if by_kind:
                kinds = sorted(by_kind)
                kind, *_ = self._random.choices(kinds, [1 if kind in _SELDOM else _OFTEN for kind in kinds])
                return self._flipped(self._random.choice(by_kind[kind]))
        return None

    def _flipped(self, key: str) -> _Flip:
        whole = self._raw.read(key)
        assert whole is not None
        bit = self._random.randrange(8 * len(whole))
        flip = _Flip(key, bit, whole, flipped(whole, bit))
        self._raw.write(key, flip.spoilt)
        return flip

    def _go_on(self, flip: _Flip) -> tuple[str, list[str]]:
        """Runs the job to its end; gives what came of it in a word, and what was wrong."""
        status, said = self._run(flip)
        if status == 0:
            if not flip.key.startswith(("features/", "outcomes/")) or self._raw.read(flip.key) != flip.spoilt:
                # Of what one label had published already, the other's damaged piece has it done again for both.
                return "the truth", wrong_at_end(self._store, self._scene, more=int(_kind(flip.key) == "stage"))
            # Published before, and not looked at by this run.
            damaged = [text for label in LABELS for text in self._verified(label)]
            wrong = (
                [] if any(text.startswith(flip.key) for text in damaged) else [f"verify does not name it: {damaged}"]
            )
            self._raw.write(flip.key, flip.whole)
            return "named by verify", wrong + wrong_at_end(self._store, self._scene)
        word = _REFUSED.search(said)
        if word is None:
            return "a traceback", [f"exit {status}: {said}"]
        if flip.key not in word[2]:
            return "refused", [f"the object is not named: {word[0]}"]
        end = self._put_right(flip, word[2])
        status, said = self._run(flip)
        if status:
            return end, [f"{end}, exit {status}: {said}"]
        return end, wrong_at_end(self._store, self._scene)

    def _put_right(self, flip: _Flip, word: str) -> str:
        """Does what the refusal says, one of two ways where it names two."""
        assert self._raw.read(flip.key) == flip.spoilt, "who refuses changes nothing"
        if "or remove it" in word and self._random.random() < 0.5:
            self._store.delete([flip.key])
            return "refused, then removed"
        self._raw.write(flip.key, flip.whole)
        return "refused, then put back"

    def _run(self, flip: _Flip) -> tuple[int, str]:
        is_alone = _kind(flip.key) != "claim"  # what says nothing any more is waited for, here for a short lease
        return self._stage.tellers.tell(self._story, self._stage.folder / "flipped.log", is_alone=is_alone)

    def _verified(self, label: str) -> tuple[str, ...]:
        manifest = read_manifest(tuple(self._story.config()["manifest"]))
        return verify(manifest, self._store, KEYS, label, max_failed=1.0).damaged


def _killed(stage: Stage, scene: Scene, story: Story, random: Random) -> int:
    """Runs the job and kills it at an operation of chance; gives its exit status."""
    point = random.choice(list(points(scene.operations)))
    return stage.tellers.tell(story, stage.folder / "flipped.log", point)[0]


def _kind(key: str) -> str:
    """``features``, ``outcomes``, ``plan``, ``stage``, ``units``, ``models``, ``runs``, ``claim`` or ``alive``."""
    if key.startswith(KEYS.drivers):
        return key.rpartition(".")[2]
    return key.removeprefix(f"{KEYS.own}/").partition("/")[0]
