"""Features of frames or clips become one vector a video: a second job that reads shards and never touches pixels.

It goes shard by shard over the dataset's own plan, and its results take the same way as those of the main job: a
staged piece, then the publish. So it resumes in the same way, and its partition looks like any other.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import featlib
from featlib import partition
from featlib.aggregation.due import Due, due_items
from featlib.aggregation.rows import features_by_shard
from featlib.aggregation.shard import ShardWork
from featlib.aggregation.sources import Source, open_sources
from featlib.aggregation.vectors import Maker, maker_of
from featlib.backlog import Backlog
from featlib.config import AggregateConfig, fingerprint
from featlib.drivers import Claim
from featlib.errors import ConfigError, StoppedError
from featlib.layout import Keys
from featlib.ledger import Ledger
from featlib.plan import Plan, PlanItems, read_plan
from featlib.progress import Reporter, SilentReporter
from featlib.publisher import ShardPublisher
from featlib.redaction import redact
from featlib.shards.doubt import remove_settled
from featlib.shards.publish import Event
from featlib.shards.schema import Provenance, to_json
from featlib.shards.staging import piece_keys, read_shards
from featlib.storage import Store, StoreOptions
from featlib.summary import Seconds, Summary

if TYPE_CHECKING:
    from featlib.heads.saved import TrainedHead

_ANOTHER = "--label NEWLABEL"
_TRIES = 3
_MB = 1 << 20
_VERSION = "1"


@dataclass(frozen=True)
class _Made:
    """How vectors are made, and what they are made of."""

    sources: Sequence[Source]
    maker: Maker
    provenance: Provenance


@dataclass(frozen=True)
class _Job:
    config: AggregateConfig
    store: Store
    keys: Keys
    made: _Made
    plan: Plan
    items: PlanItems
    ledger: Ledger
    due: Due


def aggregate(
    config: AggregateConfig, *, reporter: Reporter | None = None, on_event: Event = lambda name, what: None
) -> Summary:
    """Runs the job that ``featlib aggregate`` runs; a repeated call takes up what has been added since.

    Raises:
        ConfigError: There is no such partition, or ``label`` was made with other settings.
        StoppedError: The job cannot go on now; the same call goes on later.
    """
    options = StoreOptions(config.endpoint_url, config.anon)
    store, keys = Store(config.output, options), Keys(config.dataset)
    started = time.monotonic()
    with reporter or SilentReporter() as shown:
        head = _read_head(config, options)
        config = config if head is None else config.labelled(head.spec.head)
        _checked(config, head, store, keys)
        with Claim(store, keys) as claim:
            shown.stage("reading the plan")
            claim.settle()
            made = _checked(config, head, store, keys)  # again: a driver that ended meanwhile may have changed it
            plan = read_plan(store, keys)
            if not len(plan.ids):
                raise ConfigError(f"{redact(store.url)}: the plan of dataset {keys.dataset} is gone; extract it again")
            claim.confirm()
            partition.register(store, keys, {config.label: made.provenance}, another=_ANOTHER)
            _remove_pieces(store, keys, config.label, claim)
            items = PlanItems(store, plan)
            due = due_items(store, keys, plan, config.features, config.label)
            ledger = Ledger(plan, [config.label])
            ledger.load(store, keys)
            job = _Job(config, store, keys, made, plan, items, ledger, due)
            seconds = _work(job, claim, shown, on_event)
            seconds.wall = time.monotonic() - started
            claim.check()  # what it sums up may be another's
            summary = _summary(job, seconds)
            if summary.did_work:
                store.put(f"{keys.runs}/{claim.id}.json", to_json(summary.to_dict()).encode())
            return summary


def _read_head(config: AggregateConfig, options: StoreOptions) -> "TrainedHead | None":
    if config.head is None:
        return None
    from featlib.heads.saved import read_head  # loads torch, which pooling has no use for

    return read_head(config.head, options)


def _checked(config: AggregateConfig, head: "TrainedHead | None", store: Store, keys: Keys) -> _Made:
    """How the vectors are made; refused when they cannot be made, or when the partition was made otherwise."""
    sources = open_sources(store, keys, config.features)
    maker = maker_of(config, head, sources)
    provenance = _provenance(config, sources, maker, head)
    partition.check(store, keys, {config.label: provenance}, another=_ANOTHER)
    return _Made(sources, maker, provenance)


def _remove_pieces(store: Store, keys: Keys, label: str, claim: Claim) -> None:
    """Vectors that a broken run staged: their sources may have changed since, and they are made again in no time."""
    pieces = (piece for _, staged in read_shards(store, piece_keys(store, keys)) for piece in staged)
    mine = [piece.key for piece in pieces if label in piece.fingerprints]
    if mine:
        claim.confirm()
        store.delete(mine)
    remove_settled(store, keys, [label], claim.confirm)


def _provenance(
    config: AggregateConfig, sources: Sequence[Source], maker: Maker, head: "TrainedHead | None"
) -> Provenance:
    """What makes the vectors: the fingerprints of what they are made of, in the order of fusion, among it."""
    how = config.fuse if head is None else head.spec.fuse
    semantics = {
        "features": to_json([(source.label, source.fingerprint) for source in sources]),
        **maker.semantics(),
        "fuse": how if len(sources) > 1 else "none",
        "normalize": "l2" if config.normalize else "none",
        "extractor": f"featlib.aggregate/{_VERSION}",
    }
    record = {"featlib": featlib.__version__}
    if head is not None:
        record |= {"head_source": head.source, "torch": version("torch")}
    return Provenance(config.dataset, config.label, fingerprint(semantics), semantics, record)


def _work(job: _Job, claim: Claim, shown: Reporter, on_event: Event) -> Seconds:
    label, seconds = job.config.label, Seconds(workers={"aggregate": 1})
    backlog = Backlog(job.plan, {label: job.due.needs}, {label: job.made.provenance.fingerprint})
    publisher = ShardPublisher(
        job.store,
        job.keys,
        job.items,
        backlog,
        {label: job.made.provenance},
        job.config.shard_mb * _MB,
        claim,
        on_event,
    )
    shown.stage("aggregating")
    shown.begin(backlog.num_items)
    made = job.made
    work = ShardWork(job.store, job.keys, made.sources, made.maker, label, made.provenance.fingerprint)
    listed = {name: features_by_shard(job.store, job.keys, name) for name in job.config.features}
    for shard in backlog.shards:
        started = time.monotonic()
        items = job.items.shard(shard)
        wanted = backlog.needs_of(shard, items)
        todo = [i for i in items if i.media_id in wanted]
        keys_of = {name: by_shard.get(shard, []) for name, by_shard in listed.items()}
        for _ in range(_TRIES):  # a piece that turns out to be damaged is deleted by the publish, and made again
            key, reports = work.stage(shard, todo, keys_of)
            on_event("shard_staged", str(shard))
            published = publisher.publish(shard, (key,))
            if not published.again:
                break
        else:
            raise StoppedError(f"shard {shard}: what was staged came back damaged {_TRIES} times; look at the store")
        for name, outcomes in published.outcomes.items():
            job.ledger.record(name, shard, outcomes)
        bad = sum(r.models[label].status in ("failed", "partial") for r in reports)
        shown.advance(len(reports), sum(r.models[label].num_rows for r in reports), bad)
        seconds.busy["aggregate"] = seconds.busy.get("aggregate", 0.0) + time.monotonic() - started
    return seconds


def _summary(job: _Job, seconds: Seconds) -> Summary:
    config, ledger, url, label = job.config, job.ledger, job.store.url, job.config.label
    return Summary(
        dataset=config.dataset,
        media={name or "open": n for name, n in ledger.status_counts(job.due.ready).items() if n},
        classes=dict(ledger.class_counts(job.due.ready)),
        rows={label: ledger.num_rows(label)},
        features={label: f"{url}/{job.keys.features(label)}"},
        outcomes={label: f"{url}/{job.keys.outcomes(label)}"},
        max_failed=config.max_failed,
        seconds=seconds,
        pools="1 aggregate",
        did_work=bool(job.due.needs.any()),
        can_retry=False,
    )
