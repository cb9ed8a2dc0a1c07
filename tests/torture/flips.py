"""Flipped bits: at rest in published objects, and in flight between a process and an object store."""

import shutil
from pathlib import Path
from random import Random

from featlib.manifest import read_manifest
from featlib.shards.verify import verify
from featlib.storage import ObjectInfo, Store, StoreOptions
from tests.servers.faults import Fault, FaultProxy
from tests.torture.publishing import KEYS, Stage
from tests.torture.story import LABELS
from tests.torture.tally import Tally


def at_rest(stage: Stage, folder: Path, total: int, seed: int) -> Tally:
    """Flips a bit of an object of a finished output each time; ``featlib verify`` must call that object damaged."""
    tally = Tally("bits flipped at rest in features and outcomes")
    scene = stage.scene(seed, "changed")
    shutil.copytree(scene.story.output, folder)
    store, manifest = Store(str(folder)), tuple(scene.story.config()["manifest"])
    objects = [(label, info.key) for label in LABELS for info in _published(store, label)]
    for number in range(total):
        random = Random(f"flip {seed} {number}")
        label, key = random.choice(objects)
        path = folder / key
        whole = path.read_bytes()
        bit = random.randrange(8 * len(whole))
        path.write_bytes(flipped(whole, bit))
        found = verify(read_manifest(manifest), store, KEYS, label, max_failed=1.0)
        path.write_bytes(whole)
        is_seen = not found.complete and any(text.startswith(key) for text in found.damaged)
        wrong = [] if is_seen else [f"bit {bit} of {key} was not seen: {found.text()}"]
        tally.add(f"flips --seed {seed} --kills {number + 1}", 1, wrong)
    return tally


def _published(store: Store, label: str) -> list[ObjectInfo]:
    return [*store.list(KEYS.features(label)), *store.list(KEYS.outcomes(label))]


def flipped(data: bytes, bit: int) -> bytes:
    """With that bit another one."""
    place, shift = divmod(bit, 8)
    return data[:place] + bytes([data[place] ^ 1 << shift]) + data[place + 1 :]


def in_flight(url: str, upstream: str, total: int, seed: int) -> Tally:
    """Flips a bit of the first answer to each read, and of the first try of each write."""
    tally = Tally("bits flipped in flight, half on reads and half on writes")
    random = Random(f"flight {seed}")
    script: list[Fault] = []
    with FaultProxy(upstream, lambda method, path: script.pop() if script else None) as proxy:
        there, spoilt = Store(url, StoreOptions(upstream)), Store(url, StoreOptions(proxy.endpoint_url))
        for number in range(total // 2):
            data = random.randbytes(random.randint(1, 200_000))
            script.append("flip_request")
            spoilt.put("a", data)
            wrong = [] if there.get("a") == data else ["the store holds other bytes than were put"]
            script.append("flip_answer")
            if spoilt.get("a") != data:
                wrong.append("other bytes came than were put")
            tally.add(f"flips --seed {seed} --kills {2 * number + 2}", 2, wrong + ["no fault"] * bool(script))
    return tally
