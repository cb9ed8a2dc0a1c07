"""Features of frames or clips become one vector a video: a second job that reads shards and never touches pixels.

It goes shard by shard over the dataset's own plan, and its results take the same way as those of the main job: a
staged piece, then the publish. So it resumes in the same way, and its partition looks like any other.
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import featlib
from featlib import partition
from featlib.aggregation.due import Due, due_items
from featlib.aggregation.rows import PooledVideo, features_by_shard, pooled_videos, vector_size
from featlib.backlog import Backlog
from featlib.config import AggregateConfig, fingerprint
from featlib.drivers import Claim
from featlib.errors import ConfigError, StoppedError
from featlib.heads.pooling import Floats, fuse, l2_normalised
from featlib.items import ItemReport, ModelReport, PlanItem
from featlib.layout import Keys, PartName
from featlib.ledger import Ledger
from featlib.plan import Plan, PlanItems, read_plan
from featlib.progress import Reporter, SilentReporter
from featlib.publisher import ShardPublisher
from featlib.shards.publish import Event
from featlib.shards.schema import OUTCOMES, Provenance, to_json
from featlib.shards.staging import feature_rows, list_pieces, stage
from featlib.spec import MediaFacts, Segment, Status
from featlib.storage import Store, StoreOptions, redact
from featlib.summary import Seconds, Summary
from featlib.unit import CLIPS

_TRIES = 3
_MB = 1 << 20
_VERSION = "1"
_BY_SEVERITY: tuple[Status, ...] = ("ok", "partial", "skipped", "failed")


@dataclass(frozen=True)
class _Job:
    config: AggregateConfig
    store: Store
    keys: Keys
    provenance: Provenance
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
    store, keys = Store(config.output, StoreOptions(config.endpoint_url, config.anon)), Keys(config.dataset)
    started = time.monotonic()
    with reporter or SilentReporter() as shown:
        _checked(config, store, keys)
        with Claim(store, keys) as claim:
            shown.stage("reading the plan")
            claim.settle()
            provenance = _checked(config, store, keys)  # again: a driver that ended meanwhile may have changed it
            plan = read_plan(store, keys)
            if not len(plan.ids):
                raise ConfigError(f"{redact(store.url)}: the plan of dataset {keys.dataset} is gone; extract it again")
            partition.register(store, keys, {config.label: provenance})
            _remove_pieces(store, keys, config.label)
            items = PlanItems(store, plan)
            due = due_items(store, keys, plan, items, config.features, config.label)
            ledger = Ledger(plan, [config.label])
            ledger.load(store, keys)
            job = _Job(config, store, keys, provenance, plan, items, ledger, due)
            seconds = _work(job, claim, shown, on_event)
            seconds.wall = time.monotonic() - started
            summary = _summary(job, seconds)
            if summary.did_work:
                store.put(f"{keys.runs}/{claim.id}.json", to_json(summary.to_dict()).encode())
            return summary


def _checked(config: AggregateConfig, store: Store, keys: Keys) -> Provenance:
    """What makes the vectors; refused when they cannot be made, or when the partition was made otherwise."""
    provenance = _provenance(config, store, keys)
    partition.check(store, keys, {config.label: provenance}, another="--label NEWLABEL")
    sizes = {label: vector_size(store, keys, label) for label in config.features}
    known = {size for size in sizes.values() if size is not None}
    if config.fuse == "mean" and len(known) > 1:
        raise ConfigError(f"--fuse mean: needs vectors of one size, these have {sorted(known)}; use concat")
    return provenance


def _remove_pieces(store: Store, keys: Keys, label: str) -> None:
    """Vectors that a broken run staged: their sources may have changed since, and they are made again in no time."""
    pieces = (piece for staged in list_pieces(store, keys).values() for piece in staged)
    store.delete([piece.key for piece in pieces if label in piece.fingerprints])


def _provenance(config: AggregateConfig, store: Store, keys: Keys) -> Provenance:
    """What makes the vectors: the fingerprints of what they are made of, in the order of fusion, among it."""
    sources = []
    for label in config.features:
        settings = partition.registered(store, keys, label)
        if settings is None:
            have = sorted({info.key.split("/")[2].removeprefix("model=") for info in store.list(_outcomes_root(keys))})
            raise ConfigError(
                f"--features {label}: {redact(store.url)} has no model={label} of dataset {keys.dataset}; "
                f"there is {', '.join(have) or 'nothing'}"
            )
        sources.append((label, fingerprint(settings)))
    semantics = {
        "features": to_json(sources),
        "pool": config.pool,
        "fuse": config.fuse if len(config.features) > 1 else "none",
        "normalize": "l2" if config.normalize else "none",
        "extractor": f"featlib.aggregate/{_VERSION}",
    }
    record = {"featlib": featlib.__version__}
    return Provenance(config.dataset, config.label, fingerprint(semantics), semantics, record)


def _outcomes_root(keys: Keys) -> str:
    return f"outcomes/dataset={keys.dataset}"


def _work(job: _Job, claim: Claim, shown: Reporter, on_event: Event) -> Seconds:
    label, seconds = job.config.label, Seconds(workers={"aggregate": 1})
    backlog = Backlog(job.plan, {label: job.due.needs}, {label: job.provenance.fingerprint})
    publisher = ShardPublisher(
        job.store,
        job.keys,
        job.items,
        backlog,
        {label: job.provenance},
        job.due.replaced,
        job.config.shard_mb * _MB,
        claim,
        on_event,
    )
    shown.stage("aggregating")
    shown.begin(backlog.num_items)
    listed = {name: features_by_shard(job.store, job.keys, name) for name in job.config.features}
    for shard in backlog.shards:
        started = time.monotonic()
        items = job.items.shard(shard)
        wanted = backlog.needs_of(shard, items)
        todo = [i for i in items if i.media_id in wanted]
        keys_of = {name: by_shard.get(shard, []) for name, by_shard in listed.items()}
        for _ in range(_TRIES):  # a piece that turns out to be damaged is deleted by the publish, and made again
            reports = _stage_shard(job, shard, todo, keys_of)
            on_event("shard_staged", str(shard))
            published = publisher.publish(shard)
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


def _stage_shard(
    job: _Job, shard: int, items: Sequence[PlanItem], keys_of: Mapping[str, Sequence[str]]
) -> list[ItemReport]:
    """Computes the vectors of some items of a shard and stages them as one piece."""
    config = job.config
    ids = {i.media_id for i in items}
    sources = {label: pooled_videos(job.store, keys, ids) for label, keys in keys_of.items()}
    before = {label: _outcomes(job, label, shard) for label in config.features}
    reports, vectors, clips = [], [], []
    for item in items:
        found = {label: sources[label].get(item.media_id) for label in config.features}
        report, vector = _fused(config, item, found, [before[label].get(item.media_id) for label in config.features])
        reports.append(report)
        if vector is not None:
            clips.append(_clip(len(reports) - 1, [v for v in found.values() if v is not None]))
            vectors.append(vector)
    sizes = {len(v) for v in vectors}
    if len(sizes) > 1:
        raise ConfigError(
            f"--features {' '.join(config.features)}: the vectors of shard {shard} have several sizes "
            f"({sorted(sizes)}); the partition holds features of several shapes, which cannot be pooled into one"
        )
    table = feature_rows(
        config.label,
        [i.media_id for i in items],
        [i.uri for i in items],
        pa.array(clips, CLIPS.value_type),
        np.stack(vectors) if vectors else np.empty((0, 0), np.float32),
        sorted(sizes),
    )
    stage(
        job.store,
        job.keys,
        shard=shard,
        unit=f"{uuid.uuid4().hex[:10]}-{config.label[:64]}",
        rows=[table],
        reports=reports,
        fingerprints={config.label: job.provenance.fingerprint},
    )
    return reports


def _fused(
    config: AggregateConfig,
    item: PlanItem,
    found: Mapping[str, PooledVideo | None],
    outcomes: Sequence[Mapping[str, object] | None],
) -> tuple[ItemReport, Floats | None]:
    """The report of one item, and its vector when every source has rows of it."""
    facts, before = _facts(outcomes), _worst(outcomes)
    vectors = [video.steps.pooled(config.pool) for video in found.values() if video is not None]
    model, vector = before, None
    if before.status in ("failed", "skipped"):
        pass  # rows of a retry that was cut before its commit do not count yet
    elif len(vectors) == len(found):
        fused = vectors[0] if len(vectors) == 1 else fuse(vectors, config.fuse)
        vector = l2_normalised(fused) if config.normalize else fused
        model = replace(before, num_rows=1)
    else:
        lacking = next(label for label, video in found.items() if video is None)
        model = ModelReport("failed", 0, "no_rows", f"model={lacking} has no rows of this item to aggregate")
    report = ItemReport(
        item.media_id, item.uri, Segment(0, 1), facts, created=time.time(), models={config.label: model}
    )
    return report, vector


def _worst(outcomes: Sequence[Mapping[str, object] | None]) -> ModelReport:
    """What the sources say of an item; the worst of several."""
    known = [o for o in outcomes if o is not None]
    worst = max(known, key=lambda o: _BY_SEVERITY.index(_status(o)))
    return ModelReport(
        _status(worst), 0, _text(worst["error_class"]), _text(worst["error_message"]), bool(worst["retryable"])
    )


def _status(outcome: Mapping[str, object]) -> Status:
    return next(s for s in _BY_SEVERITY if s == outcome["status"])


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _facts(outcomes: Sequence[Mapping[str, object] | None]) -> MediaFacts:
    """Of the media, from the first source that knows it; nothing was decoded for this."""
    names = ("duration_s", "width", "height", "codec", "size", "etag")
    first = next(o for o in outcomes if o is not None)
    return MediaFacts(**{name: first[name] for name in names})  # type: ignore[arg-type]


def _clip(place: int, rows: Sequence[PooledVideo]) -> dict[str, object]:
    starts = [r.start_s for r in rows if r.start_s is not None]
    ends = [r.end_s for r in rows if r.end_s is not None]
    return {
        "item": place,
        "clip_index": 0,
        "start_s": min(starts) if starts else None,
        "end_s": max(ends) if ends else None,
        "frame_s": sorted({t for r in rows for t in r.frame_s}),
        "padded_frames": 0,
        "frame_idx": [],
    }


def _outcomes(job: _Job, label: str, shard: int) -> dict[str, Mapping[str, object]]:
    """Outcome rows of a shard by media id."""
    names = [n for n in OUTCOMES.names if n not in ("label", "split", "manifest")]
    key = f"{job.keys.outcomes(label)}/{PartName(shard)}"
    with job.store.open(key) as file:
        rows = pq.ParquetFile(file).read(columns=names).to_pylist()
    return {row["media_id"]: row for row in rows}


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
    )
