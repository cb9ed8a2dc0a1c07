"""Features of frames or clips become one vector a video: a second job that reads shards and never touches pixels.

It goes shard by shard over the dataset's own plan, and its results take the same way as those of the main job: a
staged piece, then the publish. So it resumes in the same way, and its partition looks like any other.
"""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import featlib
from featlib import partition
from featlib.backlog import Backlog
from featlib.config import AggregateConfig, fingerprint
from featlib.drivers import Claim
from featlib.errors import ConfigError
from featlib.heads.pooling import Floats, fuse, l2_normalised, pool, steps_of
from featlib.items import ItemReport, ModelReport, PlanItem
from featlib.layout import Keys, PartName
from featlib.ledger import Ledger, Rows
from featlib.plan import Plan, PlanItems, read_plan
from featlib.progress import Reporter, SilentReporter
from featlib.publisher import ShardPublisher, remove_history
from featlib.shards.publish import Event
from featlib.shards.schema import OUTCOMES, Provenance, to_json
from featlib.shards.staging import feature_rows, stage
from featlib.spec import MediaFacts, Segment, Status
from featlib.storage import Store, StoreOptions, redact
from featlib.summary import Seconds, Summary
from featlib.unit import CLIPS

_COLUMNS = ["media_id", "start_s", "end_s", "frame_s", "feature", "feature_shape"]
_BATCH_ROWS = 1024
_MB = 1 << 20
_VERSION = "1"
_BY_SEVERITY: tuple[Status, ...] = ("ok", "partial", "skipped", "failed")


@dataclass(frozen=True)
class VideoRows:
    """All rows of one video under one model.

    Args:
        steps: float32 (num_steps, D).
        frame_s: Presentation times of the source frames in them, each once, in order.
    """

    steps: Floats
    start_s: float | None
    end_s: float | None
    frame_s: tuple[float, ...]


@dataclass(frozen=True)
class _Job:
    config: AggregateConfig
    store: Store
    keys: Keys
    provenance: Provenance
    plan: Plan
    items: PlanItems
    ledger: Ledger


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
        provenance = _provenance(config, store, keys)
        partition.check(store, keys, {config.label: provenance})
        with Claim(store, keys) as claim:
            shown.stage("reading the plan")
            claim.settle()
            partition.register(store, keys, {config.label: provenance})
            remove_history(store, keys, [config.label])
            plan = read_plan(store, keys)
            ledger = Ledger(plan, [*config.features, config.label])
            ledger.load(store, keys)
            job = _Job(config, store, keys, provenance, plan, PlanItems(store, plan), ledger)
            needs = _needs(job)
            seconds = _work(job, needs, claim, shown, on_event)
            seconds.wall = time.monotonic() - started
            summary = _summary(job, seconds, did_work=bool(needs.any()))
            if summary.did_work:
                store.put(f"{keys.runs}/{claim.id}.json", to_json(summary.to_dict()).encode())
            return summary


def _provenance(config: AggregateConfig, store: Store, keys: Keys) -> Provenance:
    """What makes the vectors, the fingerprints of what they are made of among it."""
    sources = {}
    for label in config.features:
        settings = partition.registered(store, keys, label)
        if settings is None:
            have = sorted({info.key.split("/")[2].removeprefix("model=") for info in store.list(_outcomes_root(keys))})
            raise ConfigError(
                f"--features {label}: {redact(store.url)} has no model={label} of dataset {keys.dataset}; "
                f"there is {', '.join(have) or 'nothing'}"
            )
        sources[label] = fingerprint(settings)
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


def _needs(job: _Job) -> Rows:
    """Items that every source is done with and the result is not; failed ones again once a source has rows."""
    ledger, config = job.ledger, job.config
    ready = np.logical_and.reduce([ledger.done(label, retry_failed=False) for label in config.features])
    has_rows = np.logical_and.reduce([ledger.done(label, retry_failed=True) for label in config.features])
    mine = ledger.done(config.label, retry_failed=False)
    failed = mine & ~ledger.done(config.label, retry_failed=True)
    needs: Rows = (ready & ~mine) | (failed & has_rows)
    return needs


def _work(job: _Job, needs: Rows, claim: Claim, shown: Reporter, on_event: Event) -> Seconds:
    label, seconds = job.config.label, Seconds(workers={"aggregate": 1})
    backlog = Backlog(job.plan, {label: needs}, {label: job.provenance.fingerprint})
    publisher = ShardPublisher(
        job.store,
        job.keys,
        job.items,
        backlog,
        {label: job.provenance},
        frozenset(),
        job.config.shard_mb * _MB,
        claim,
        on_event,
    )
    shown.stage("aggregating")
    shown.begin(backlog.num_items)
    run = uuid.uuid4().hex[:10]
    for shard in backlog.shards:
        started = time.monotonic()
        items = job.items.shard(shard)
        wanted = backlog.needs_of(shard, items)
        reports = _stage_shard(job, shard, [i for i in items if i.media_id in wanted], run)
        on_event("shard_staged", str(shard))
        while True:  # a piece that turns out to be damaged is deleted by the publish, and made again
            published = publisher.publish(shard)
            if not published.again:
                break
            again = {i.media_id for unit in published.again for i in unit.items}
            _stage_shard(job, shard, [i for i in items if i.media_id in again], run)
        for name, outcomes in published.outcomes.items():
            job.ledger.record(name, shard, outcomes)
        bad = sum(r.models[label].status in ("failed", "partial") for r in reports)
        shown.advance(len(reports), sum(r.models[label].num_rows for r in reports), bad)
        seconds.busy["aggregate"] = seconds.busy.get("aggregate", 0.0) + time.monotonic() - started
    return seconds


def _stage_shard(job: _Job, shard: int, items: Sequence[PlanItem], run: str) -> list[ItemReport]:
    """Computes the vectors of some items of a shard and stages them as one piece."""
    config = job.config
    sources = {label: _vectors(job, label, shard, {i.media_id for i in items}) for label in config.features}
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
        unit=f"{run}-{config.label[:64]}-{shard:05d}",
        rows=[table],
        reports=reports,
        fingerprints={config.label: job.provenance.fingerprint},
    )
    return reports


def _fused(
    config: AggregateConfig,
    item: PlanItem,
    found: Mapping[str, VideoRows | None],
    outcomes: Sequence[Mapping[str, object] | None],
) -> tuple[ItemReport, Floats | None]:
    """The report of one item, and its vector when every source has rows of it."""
    facts, before = _facts(outcomes), _worst(outcomes)
    vectors = [rows.steps[0] for rows in found.values() if rows is not None]
    model, vector = before, None
    if len(vectors) == len(found):
        try:
            fused = vectors[0] if len(vectors) == 1 else fuse(vectors, config.fuse)
            vector = l2_normalised(fused) if config.normalize else fused
            model = replace(before, num_rows=1)
        except ValueError as error:
            raise ConfigError(f"--fuse {config.fuse}: {error}") from None
    elif before.status in ("ok", "partial"):
        lacking = next(label for label, rows in found.items() if rows is None)
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


def _clip(place: int, rows: Sequence[VideoRows]) -> dict[str, object]:
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


def _vectors(job: _Job, label: str, shard: int, wanted: set[str]) -> dict[str, VideoRows]:
    """The pooled vector of each wanted item of a shard under one model, as rows of a single step."""
    return {
        media_id: replace(rows, steps=pool(rows.steps, job.config.pool)[None])
        for media_id, rows in video_rows(job.store, job.keys, label, shard)
        if media_id in wanted
    }


def video_rows(store: Store, keys: Keys, label: str, shard: int) -> Iterator[tuple[str, VideoRows]]:
    """Every item of a shard under one model with all its rows, one item in memory at a time.

    The rows of an item lie together in one object, in the order of their clips.
    """
    for info in store.list(keys.features(label)):
        name = PartName.parse(info.key)
        if name is None or name.shard != shard:
            continue
        with store.open(info.key) as file:
            batches = pq.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=_COLUMNS)
            yield from _by_item(batches)


def _by_item(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, VideoRows]]:
    current, parts = "", list[pa.RecordBatch]()
    for batch in batches:
        ids = np.asarray(batch["media_id"].to_pylist(), dtype=object)
        starts = [0, *(np.flatnonzero(ids[1:] != ids[:-1]) + 1).tolist(), len(ids)]
        for start, stop in pairwise(starts):
            if start == stop:
                continue
            if ids[start] != current and parts:
                yield current, _video(parts)
                parts = []
            current = str(ids[start])
            parts.append(batch.slice(start, stop - start))
    if parts:
        yield current, _video(parts)


def _video(parts: Sequence[pa.RecordBatch]) -> VideoRows:
    table = pa.Table.from_batches(parts)
    shape = table["feature_shape"][0].as_py()
    values = np.concatenate([c.flatten().to_numpy(zero_copy_only=False) for c in table["feature"].chunks])
    starts = [s for s in table["start_s"].to_pylist() if s is not None]
    ends = [e for e in table["end_s"].to_pylist() if e is not None]
    times = {t for row in table["frame_s"].to_pylist() for t in row or ()}
    return VideoRows(
        steps_of(values.reshape(table.num_rows, -1), shape),
        min(starts) if starts else None,
        max(ends) if ends else None,
        tuple(sorted(times)),
    )


def _summary(job: _Job, seconds: Seconds, *, did_work: bool) -> Summary:
    config, ledger, url = job.config, job.ledger, job.store.url
    label = config.label
    mine = Ledger(job.plan, [label])
    mine.load(job.store, job.keys)
    known = np.logical_or.reduce([ledger.done(name, retry_failed=False) for name in config.features])
    return Summary(
        dataset=config.dataset,
        media={name or "open": n for name, n in mine.status_counts(known).items() if n},
        classes=dict(mine.class_counts(known)),
        rows={label: mine.num_rows(label)},
        features={label: f"{url}/{job.keys.features(label)}"},
        outcomes={label: f"{url}/{job.keys.outcomes(label)}"},
        max_failed=config.max_failed,
        seconds=seconds,
        pools="1 aggregate",
        did_work=did_work,
    )
