"""The passes of one run: the graph is walked over what is open until nothing is, and shards are published meanwhile."""

import json
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from featlib.backlog import Backlog
from featlib.config import ExtractConfig
from featlib.drivers import Claim
from featlib.errors import ConfigError, StoppedError
from featlib.items import ItemReport
from featlib.layout import Keys
from featlib.ledger import Ledger
from featlib.leftovers import clean_up
from featlib.plan import PlanItems
from featlib.pools import Pools
from featlib.progress import Reporter
from featlib.publisher import Published, PublisherThread, ShardPublisher
from featlib.shards.publish import Event
from featlib.shards.schema import Provenance
from featlib.shards.staging import piece_keys, read_heads, rounds_of, stage
from featlib.spec import MediaFacts, Segment
from featlib.start import RayStart
from featlib.storage import Store
from featlib.summary import Seconds
from featlib.units_file import UnitsFile
from featlib.work import Unit, UnitItem, items_in_unit, split_unit, unit_from_row, videos_in_unit
from featlib.workers import DECODE, MAX_ATTEMPTS, STOP, died_report, finished_entry, moving_report

if TYPE_CHECKING:
    from featlib.dataflow import Flow
    from featlib.extractors.resolve import ResolvedModel

_MB = 1 << 20
_MOST_AGAIN = 3


@dataclass(frozen=True)
class Task:
    """Everything a run works with: what is asked, what made it, and what is open.

    Args:
        decode: ``module:function`` that decodes an item.
    """

    config: ExtractConfig
    store: Store
    keys: Keys
    models: "tuple[ResolvedModel, ...]"
    provenance: Mapping[str, Provenance]
    items: PlanItems
    backlog: Backlog
    ledger: Ledger
    ray: RayStart
    decode: str = DECODE

    @property
    def fingerprints(self) -> dict[str, str]:
        """By label."""
        return {label: p.fingerprint for label, p in self.provenance.items()}


class Run:
    """One run over a backlog. Results are read in this thread, shards are published in another of this process."""

    def __init__(self, task: Task, claim: Claim, shown: Reporter, on_event: Event) -> None:
        self._task, self._claim, self._shown, self._on_event = task, claim, shown, on_event
        self._id = uuid.uuid4().hex[:10]
        self._later: UnitsFile  # those of the next pass
        self._alone: list[Unit] = []  # of which a worker died; it may have taken those along that waited in it
        self._again = Counter[str]()  # by media id, how often what was staged was of no use
        self._bad: set[str] = set()
        self._ray: tuple[Flow, Pools] | None = None
        self._threads: dict[str, int] = {}  # of compiled networks: for other threads they would be compiled anew
        self._publisher = PublisherThread(
            ShardPublisher(
                task.store,
                task.keys,
                task.items,
                task.backlog,
                task.provenance,
                task.config.shard_mb * _MB,
                claim,
                on_event,
            ).publish
        )
        self.seconds = Seconds()
        self.notes: list[str] = []
        self.frames_decoded = 0
        self.pools = ""

    def work(self) -> None:
        """Brings every open item to an outcome and publishes every shard.

        Raises:
            ConfigError: The layout cannot fit; nothing was read.
            StoppedError: The run cannot go on; what it staged and published stays.
        """
        try:
            self._work()
        except ConfigError as error:
            if self._ray is None:
                raise
            raise StoppedError(f"{error}; then run the same command again to go on") from error

    def _work(self) -> None:
        started = time.monotonic()
        task = self._task
        with TemporaryDirectory(prefix="featlib-units-") as folder, self._publisher:
            files = (UnitsFile(Path(folder) / f"units-{i}") for i in count())
            units, self._later = next(files), next(files)
            unit_items, unit_videos = _unit_items(task), _unit_videos(task)
            units.extend(
                task.backlog.units(task.store, task.keys, task.items, unit_items=unit_items, unit_videos=unit_videos)
            )
            units.close()
            ready = task.backlog.ready_shards()
            if ready:
                self._shown.stage("publishing what was staged before")
            for shard in ready:
                self._publisher.put(shard)
            self._shown.begin(task.backlog.open_items)
            number, is_apart = 0, False
            while units.num_units or not self._all_published():
                if units.num_units:
                    self._pass(units, number, is_apart=is_apart)
                number, is_apart = number + 1, bool(self._alone)
                units = self._next_units(files)
        if task.backlog.open_items or task.backlog.unpublished:  # never, unless what workers say cannot be true
            raise StoppedError(
                f"{task.backlog.open_items} media and {task.backlog.unpublished} shards came to no end though all work "
                "was done; what was staged stays, run the same command again"
            )
        clean_up(task.store, task.keys, self._claim, task.backlog.shards, task.provenance)
        task.store.sweep_temporary()
        self.seconds.wall = time.monotonic() - started

    def _all_published(self) -> bool:
        """Waits for the publisher; False when what it did gave new work."""
        self._settle(self._publisher.wait())  # also for what is asked for meanwhile
        return not self._later.num_units and not self._alone

    def _next_units(self, files: Iterator[UnitsFile]) -> UnitsFile:
        """Those that were lost have a pass of their own."""
        units = next(files)
        if self._alone:
            units.extend(self._alone)
            self._alone = []
        else:
            units, self._later = self._later, units
        units.close()
        return units

    def _pass(self, units: UnitsFile, number: int, *, is_apart: bool) -> None:
        """One walk of the graph over ``units``; what it leaves open goes to ``self._later`` and ``self._alone``."""
        from featlib.dataflow import results
        from featlib.nodes import check_nodes

        flow, all_pools = self._start()
        pools = all_pools.for_units(units.num_units, self._threads)
        self._threads = pools.threads({m.label for m in self._task.models if m.arithmetic == "compiled"})
        self._count_workers(pools)
        flow = replace(flow, run=f"{self._id}-{number}", is_apart=is_apart)
        task = self._task
        key = f"{task.keys.units}/{flow.run}.units"
        self._claim.guard()
        task.store.put_file(key, str(units.path))
        self._shown.stage("extracting")
        seen = np.zeros(units.num_units, dtype=bool)
        for row in results(flow, pools, key, units.num_units):
            if row["seq"] == STOP or not seen[row["seq"]]:
                seen[row["seq"]] = True
                self._take(row)
        if not seen.all():
            self._claim.check()
            check_nodes(flow.output, flow.store_options, key)  # before an item is blamed
        for unit in units.read(~seen):
            self._lost(unit, flow.run)
        task.store.delete([key])

    def _start(self) -> "tuple[Flow, Pools]":
        """Connects Ray and reads the weights for shipping: once, and only when there is something to decode."""
        if self._ray is None:
            self._shown.stage("starting Ray")
            pools, waited_s = self._task.ray.pools()
            started = time.monotonic() - waited_s
            self._ray = _flow(self._task, self._id), pools
            self.seconds.start = time.monotonic() - started
        return self._ray

    def _count_workers(self, pools: Pools) -> None:
        """For the summary: of all passes, the one with the most workers counts."""
        workers = {"decode": pools.decode_workers}
        if pools.flow is not None:
            workers["flow"] = pools.flow.workers
        for pool in pools.extract:
            workers |= {f"extract {label}": pool.workers for label in pool.labels}
        if sum(workers.values()) > sum(self.seconds.workers.values()):
            self.seconds.workers, self.pools = workers, str(pools)

    def _take(self, row: Mapping[str, Any]) -> None:
        """Takes the result of one unit, unless this driver was buried meanwhile."""
        self._claim.guard()
        stats = json.loads(row["stats"])
        if "fatal" in stats:
            self._claim.check()  # who is buried misses what the other removed
            raise StoppedError(stats["fatal"])
        for note in stats.pop("notes", ()):
            self._note(note)
        self.seconds.add(stats)
        self.frames_decoded += int(stats["frames_decoded"])
        self._later.extend(unit_from_row(u) for u in json.loads(row["later"]))
        finished = json.loads(row["finished"])
        if finished:
            self._on_event("unit_staged", str(row["seq"]))
        self._finish(row["shard"], finished)
        self._settle(self._publisher.take())

    def _note(self, note: str) -> None:
        """Shows what a worker has to say; many may say the same."""
        if note not in self.notes:
            self.notes.append(note)
            self._shown.stage(note)
            self._shown.stage("extracting")

    def _finish(self, shard: int, finished: Sequence[Sequence[Any]]) -> None:
        backlog = self._task.backlog
        before = backlog.open_items
        ready = backlog.finish(shard, finished)
        models = [m for *_, by_label in finished for m in by_label.values()]
        bad = {m for m, *_, by in finished if any(s in ("failed", "partial") for s, _, _ in by.values())}
        new = bad - self._bad  # segments of one long item report one by one
        self._bad |= new
        self._shown.advance(before - backlog.open_items, sum(rows for _, _, rows in models), len(new))
        if ready:
            self._publisher.put(shard)

    def _settle(self, published: Iterable[Published]) -> None:
        """Takes what the publisher did."""
        for result in published:
            if result.again:
                self._redo(result.shard, result.again)
            else:
                for label, outcomes in result.outcomes.items():
                    self._task.ledger.record(label, result.shard, outcomes)
                self._task.backlog.close(result.shard)

    def _redo(self, shard: int, units: Sequence[Unit]) -> None:
        """Begins items anew of which what was staged is of no use: a piece is damaged or gone, or the file was replaced
        while its segments were read. A file that is replaced each time ends as that."""
        task = self._task
        ids = [item.media_id for unit in units for item in unit.items]
        self._again.update(ids)
        task.backlog.reopen(shard, ids)
        keys = piece_keys(task.store, task.keys, shard).get(shard, [])
        spoilt = {media_id for media_id in ids if self._again[media_id] > _MOST_AGAIN}
        versions = self._versions(shard, keys, spoilt) if spoilt else {}
        task.backlog.set_aside(shard, ids, keys)
        self._later.extend(unit for unit in units if unit.items[0].media_id not in spoilt)
        for unit in units:
            item = replace(unit.items[0], attempt=self._again[unit.items[0].media_id])
            if item.media_id in spoilt:
                self._stage_outcome(
                    unit, f"{self._id}-moving", moving_report(item, unit.labels, versions[item.media_id])
                )

    def _versions(self, shard: int, keys: Sequence[str], media_ids: Collection[str]) -> dict[str, MediaFacts]:
        """By media id, what was last seen of files that were replaced while they were read.

        Raises:
            StoppedError: One was not; so what was staged of it is damaged, or gone.
        """
        pieces = self._task.backlog.without_replaced(shard, read_heads(self._task.store, keys))
        seen = {media_id: [r for p in pieces for r in p.reports if r.media_id == media_id] for media_id in media_ids}
        for media_id, reports in seen.items():
            if len({r.source for r in reports} - {(None, None)}) < 2:
                raise StoppedError(
                    f"{media_id}: what was staged of it could not be read back {self._again[media_id]} times; look "
                    f"whether {self._task.store.url} keeps what it is given, then run the same command again to go on"
                )
        return {media_id: max(reports, key=lambda r: r.created).facts for media_id, reports in seen.items()}

    def _lost(self, unit: Unit, run: str) -> None:
        """A unit whose worker died: its items are tried alone, and at last the loss is their outcome."""
        for alone in split_unit(unit):
            item = alone.items[0]
            if item.attempt <= MAX_ATTEMPTS:
                self._alone.append(alone)
                continue
            tried = UnitItem(item.media_id, item.uri, item.start_s, item.end_s, item.attempt - 1)
            report = died_report(tried, unit.labels, Segment(unit.k, unit.n, unit.by))
            self._stage_outcome(unit, f"{run}-died", report)

    def _stage_outcome(self, unit: Unit, prefix: str, report: ItemReport) -> None:
        """Ends an item, or a segment of it, that no worker brings to an end."""
        stage(
            self._task.store,
            self._task.keys,
            shard=unit.shard,
            unit=f"{prefix}-{report.media_id[:64]}-{unit.k}",
            rows=(),
            reports=[report],
            fingerprints=self._task.fingerprints,
            rounds=rounds_of(self._task.backlog.rounds, unit.shard),
        )
        self._finish(unit.shard, [finished_entry(report)])


def _unit_items(task: Task) -> int:
    """Most small items in a unit of this job."""
    crops = {m.input.pixels.key: m.input.pixels.crop for m in task.models}.values()
    pixels = sum(crop[0] * crop[1] for crop in crops if crop is not None)
    fit = task.config.unit_mb * _MB // (3 * pixels) if None not in crops else 0
    return task.config.unit_items or items_in_unit(task.backlog.num_items, fit)


def _unit_videos(task: Task) -> int | None:
    """Most videos in a unit of this job; networks of frames rather get several, which fill their batches."""
    is_free = task.config.unit_items is None and all(m.input.kind == "clip" for m in task.models)
    return videos_in_unit(task.backlog.num_items) if is_free else None


def _flow(task: Task, run: str) -> "Flow":
    from featlib.dataflow import Flow, ship
    from featlib.extractors.flow_method import flow_payload
    from featlib.extractors.weights import payload, release_payloads
    from featlib.media import Limits

    config = task.config
    limits = Limits(
        unit_bytes=config.unit_mb * _MB,
        memory_bytes=config.decode_memory_mb * _MB,
        stall_s=config.decode_stall_s,
        deadline_s=config.decode_deadline_s,
    )
    by_trunk = {m.trunk: ship(payload(m, task.store.options)) for m in {m.trunk: m for m in task.models}.values()}
    weights = {m.label: by_trunk[m.trunk] for m in task.models}
    release_payloads()
    kinds = {m.input.flow_spec for m in task.models}
    return Flow(
        output=task.store.url,
        store_options=task.store.options,
        dataset=config.dataset,
        run=run,
        models=task.models,
        weights=weights,
        fingerprints=task.fingerprints,
        rounds=task.backlog.rounds,
        wants=tuple(m.want for m in task.models),
        limits=limits,
        flow_weights={kind: ship(flow_payload(kind.method)) for kind in kinds if kind is not None},
        decode=task.decode,
    )
