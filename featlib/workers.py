"""What the actors do, without Ray: a unit comes in as an Arrow table of one row and goes out as one.

Every worker is built from plain values and called with a block, so each is tested by calling it.
"""

import json
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featlib.arrays import Extracted, Stretches
from featlib.errors import DamagedError, FeatlibError, StoppedError
from featlib.faults import memory_reason
from featlib.items import ItemReport, ModelReport
from featlib.layout import Keys
from featlib.sealed import open_part, reread
from featlib.shards.staging import feature_rows, rounds_of, stage
from featlib.spec import Decoded, MediaFacts, MediaItem, Segment, Status, Want
from featlib.storage import Store, StoreOptions
from featlib.unit import (
    UnitBuilder,
    clips_of,
    features_of,
    flow_of,
    frame_index,
    frames_of,
    json_column,
    reports_of,
    with_features,
    with_stats,
    without,
)
from featlib.work import UNITS, UNITS_A_GROUP, Unit, UnitItem, unit_from_row, unit_row, units_table

if TYPE_CHECKING:
    from featlib.extractors.resolve import ResolvedModel
    from featlib.inference import Engine, RegionEngine
    from featlib.media import Limits

_MOST_VALUES = 1 << 28  # in one table; an Arrow list counts its values in 31 bits
DECODE = "featlib.media.decode:decode_item"
STOP = -1
"""Number of a unit that holds no work, but what must stop the job."""

MAX_ATTEMPTS = 3
"""Tries of an item within one run, after which what went wrong is its outcome."""

RESULT = pa.schema(
    [
        pa.field("seq", pa.int64()),
        pa.field("shard", pa.int32()),
        pa.field("finished", pa.string()),
        pa.field("later", pa.string()),
        pa.field("stats", pa.string()),
    ]
)
"""What comes back to the driver of a unit: ``finished`` is ``[media_id, k, n, {label: [status, class, rows]}]`` a
report, ``later`` the units that must follow."""


def unreached(host: str, reason: object) -> str:
    """What stops a job whose workers on a node cannot read or write its output."""
    return (
        f"Ray's workers on {host} do not reach the output: {reason}; where this process does, give every node the "
        "endpoint and the keys that it has, then run the same command again to go on"
    )


class UnitsReader:
    """Reads units of a pass from the output, by featlib's own retry policy.

    Args:
        key: Of a Parquet object in the schema ``UNITS``.
    """

    def __init__(self, output: str, store_options: StoreOptions, key: str) -> None:
        self._store, self._key = Store(output, store_options), key

    def __call__(self, groups: pa.Table) -> Iterator[pa.Table]:
        """The units of the row groups that are named in the column ``group``, a table a group.

        Where they cannot be read, one unit that stops the job: what a task raises here, Ray leaves out in silence.
        """
        try:
            yield from reread(self._key, partial(self._read, groups["group"].to_pylist()))
        except (FeatlibError, FileNotFoundError) as error:  # the latter when another driver took over
            yield units_table([Unit(0, (unreached(socket.gethostname(), error),), ())], STOP)

    def _read(self, groups: Sequence[int]) -> list[pa.Table]:
        with open_part(self._store, self._key) as file:
            source = pq.ParquetFile(file, page_checksum_verification=True)
            units = [source.read_row_group(group) for group in groups]
        # No checksum of Parquet covers its metadata: they may name another group, fewer rows or other columns.
        sizes = [source.metadata.row_group(i).num_rows for i in range(source.metadata.num_row_groups)]
        is_right = sum(sizes) == source.metadata.num_rows
        for group, table in zip(groups, units, strict=True):
            first = group * UNITS_A_GROUP
            is_right &= table.schema.equals(UNITS)
            is_right = is_right and table["seq"].to_pylist() == list(range(first, first + table.num_rows))
        if not is_right:
            raise DamagedError(self._key)
        return units


class DecodeWorker:
    """Decodes the items of a unit, once each, for all models; a bad item becomes a report.

    Args:
        wants: What each model wants, by label.
        decode: ``module:function`` with the signature of ``featlib.media.decode.decode_item``.
    """

    def __init__(
        self, wants: Sequence[Want], limits: "Limits", store_options: StoreOptions, decode: str = DECODE
    ) -> None:
        from featlib.media import DecodeProcess

        self._wants = {want.label: want for want in wants}
        self._specs = {want.label: want.pixels.key for want in wants}
        self._limits = limits
        self._process = DecodeProcess(limits, store_options, decode)

    def __call__(self, block: pa.Table) -> pa.Table:
        row = block.to_pylist()[0]
        unit = unit_from_row(row)
        builder = UnitBuilder(row["seq"], unit.shard, self._specs)
        if row["seq"] == STOP:
            return with_stats(builder.row([], {"decode_s": 0.0, "frames_decoded": 0.0}), {"fatal": unit.labels[0]})
        later: list[Unit] = []
        started = time.perf_counter()
        for place, item in enumerate(unit.items):
            if builder.nbytes >= self._limits.unit_bytes or builder.num_clips >= self._limits.unit_clips:
                starts = range(place, len(unit.items), place)  # so many filled this unit: so many will fill the next
                later.extend(replace(unit, items=unit.items[start : start + place]) for start in starts)
                break
            self._take(unit, item, builder, later)
        frames = sum(r.facts.frames_decoded for r in builder.reports)
        stats = {"decode_s": time.perf_counter() - started, "frames_decoded": float(frames)}
        return builder.row([unit_row(u) for u in later], stats)

    def _take(self, unit: Unit, item: UnitItem, builder: UnitBuilder, later: list[Unit]) -> None:
        wants = tuple(self._wants[label] for label in unit.labels)
        media = MediaItem(item.media_id, item.uri, item.start_s, item.end_s)
        decoded = self._process.decode(media, wants, Segment(unit.k, unit.n, unit.by))
        if decoded.status == "failed" and decoded.retryable and item.attempt < MAX_ATTEMPTS:
            later.append(replace(unit, items=(replace(item, attempt=item.attempt + 1),)))
            return
        builder.add(_item_report(item, decoded, unit.labels), decoded)
        segment = decoded.segment
        if unit.n == 0 and segment.n > 1:
            untried, ks = replace(item, attempt=1), range(1, segment.n)
            later.extend(Unit(unit.shard, unit.labels, (untried,), k, segment.n, segment.by) for k in ks)


def _item_report(item: UnitItem, decoded: Decoded, labels: Sequence[str]) -> ItemReport:
    shared = ModelReport(
        decoded.status,
        error_class=decoded.error_class,
        error_message=decoded.error_message,
        retryable=decoded.retryable,
    )
    skipped = ModelReport(
        "skipped",
        error_class="image_under_clip_model",
        error_message="an image has no motion; a model of clips has no use for it",
    )
    empty = {
        label: ModelReport("failed", error_class=error_class, error_message=message)
        for label, (error_class, message) in decoded.label_errors.items()
    }
    segment = decoded.segment if decoded.segment.n else Segment(0, 1)
    models = {label: skipped if label in decoded.skipped_labels else empty.get(label, shared) for label in labels}
    return ItemReport(item.media_id, item.uri, segment, decoded.facts, item.attempt, time.time(), models)


@dataclass(frozen=True)
class ExtractSpec:
    """The networks of one pool, and what is dropped once they have run.

    Args:
        drop: Keys of preprocessings and of flow that no later pool reads.
    """

    models: tuple["ResolvedModel", ...]
    device: str
    threads: int
    drop: tuple[str, ...]


class ExtractWorker:
    """Runs the networks of one pool over a unit and adds their features; models of one network share its forward."""

    def __init__(self, spec: ExtractSpec, payloads: Mapping[str, Any]) -> None:
        from featlib.inference import open_engine

        self._spec = spec
        groups: dict[tuple[object, ...], list[ResolvedModel]] = {}
        for model in spec.models:
            groups.setdefault(model.trunk, []).append(model)
        self._engines = [
            open_engine(models, payloads[models[0].label], device=spec.device, threads=spec.threads)
            for models in groups.values()
        ]
        self._notes = [note for engine in self._engines for note in engine.notes]

    def __call__(self, row: pa.Table) -> pa.Table:
        stats = json_column(row, "stats")
        if self._notes:  # once: the driver shows them
            stats["notes"], self._notes = [*stats.get("notes", ()), *self._notes], []
        for engine in self._engines:
            started = time.perf_counter()
            row, fatal = _extracted(row, engine)
            if fatal:
                stats["fatal"] = fatal
            # One forward for several layers: its time stands under the first of them.
            stats[f"extract_s.{engine.models[0].label}"] = time.perf_counter() - started
        return without(with_stats(row, stats), self._spec.drop)


def _extracted(row: pa.Table, engine: "Engine | RegionEngine") -> tuple[pa.Table, str]:
    """The unit with the features of an engine's models; or, when no unit would fare better, what stops the job."""
    wanted = [model for model in engine.models if len(clips_of(row, model.label))]
    made = {model.label: Extracted.nothing(model.feature_shape) for model in engine.models}
    fatal = ""
    if wanted:
        frames = frames_of(row, wanted[0].input.pixels.key) or Stretches(())
        frame_idx = frame_index(clips_of(row, wanted[0].label))
        spec = wanted[0].input.flow_spec
        flow = None if spec is None else flow_of(row, spec.key)
        try:
            for model, extracted in zip(engine.models, engine.run(frames, frame_idx, flow), strict=True):
                if model in wanted:
                    made[model.label] = extracted
        except Exception as error:  # noqa: BLE001 - raised again, unless memory ran out
            reason = memory_reason(error)
            on_cpu = engine.device.type == "cpu"
            place, more = ("the node", " or --extract-workers") if on_cpu else ("the GPU", "")
            fatal = f"{wanted[0].label}: {place} has too little memory ({reason}); lower its --batch-size{more}"
    for label, extracted in made.items():
        row = with_features(row, label, extracted)
    return row, fatal


class StageWorker:
    """Puts one staged piece a unit and tells the driver what is in it.

    Args:
        rounds: By label and shard, how often it has been committed.
        units_key: Of what the pass was asked for. A driver that takes over removes it: nobody waits for the piece then.
    """

    def __init__(
        self,
        output: str,
        store_options: StoreOptions,
        dataset: str,
        run: str,
        fingerprints: Mapping[str, str],
        rounds: Mapping[str, Mapping[int, int]],
        units_key: str,
    ) -> None:
        self._store = Store(output, store_options)
        self._keys = Keys(dataset)
        self._run = run
        self._fingerprints, self._rounds = dict(fingerprints), rounds
        self._units_key = units_key

    def __call__(self, row: pa.Table) -> pa.Table:
        started = time.perf_counter()
        seq, shard = row["seq"][0].as_py(), row["shard"][0].as_py()
        stats = json_column(row, "stats")
        reports, tables = ([], []) if "fatal" in stats else self._rows(row)
        if reports:
            try:
                if self._store.stat(self._units_key) is None:
                    raise StoppedError(f"{self._units_key} is gone, another driver took over")
                self._stage(shard, f"{self._run}-{seq:08d}", tables, reports)
            except FeatlibError as error:  # of the store or of its keys on this node, not of the media
                stats["fatal"], reports = unreached(socket.gethostname(), error), []
        stats["stage_s"] = time.perf_counter() - started
        finished = [finished_entry(r) for r in reports]
        values = [seq, shard, json.dumps(finished), row["later"][0].as_py(), json.dumps(stats)]
        return pa.table([pa.array([v], f.type) for v, f in zip(values, RESULT, strict=True)], schema=RESULT)

    def _stage(self, shard: int, unit: str, tables: Sequence[pa.Table], reports: Sequence[ItemReport]) -> None:
        stage(
            self._store,
            self._keys,
            shard=shard,
            unit=unit,
            rows=tables,
            reports=reports,
            fingerprints=self._fingerprints,
            rounds=rounds_of(self._rounds, shard),
        )

    def _rows(self, row: pa.Table) -> tuple[list[ItemReport], list[pa.Table]]:
        reports = reports_of(row)
        ids, uris = [r.media_id for r in reports], [r.uri for r in reports]
        tables = []
        for label in self._fingerprints:
            clips = clips_of(row, label)
            extracted = features_of(row, label).sound(len(clips))
            items = clips.field("item").to_numpy(zero_copy_only=False)
            reports = [_with_rows(r, label, items == i, extracted) for i, r in enumerate(reports)]
            for part in extracted.parts(_MOST_VALUES):
                rows = clips.take(pa.array(part.clips))
                tables.append(feature_rows(label, ids, uris, rows, part.features, part.shape, part.beside))
        return reports, tables


def _with_rows(report: ItemReport, label: str, is_mine: npt.NDArray[np.bool_], extracted: Extracted) -> ItemReport:
    """The report with the number of rows a model gave, and with what went wrong in the network.

    Args:
        is_mine: (num_clips,), whether a clip is of this item.
        extracted: Its sound rows.
    """
    before = report.models.get(label)
    if before is None:
        return report
    mine = np.flatnonzero(is_mine)
    wrong = [extracted.errors[int(i)] for i in mine if int(i) in extracted.errors]
    after = replace(before, num_rows=int(is_mine[extracted.clips].sum()))
    if wrong:
        message = f"the network failed on {len(wrong)} of {len(mine)} clips: {wrong[0]}"
        status: Status = "partial" if after.num_rows else "failed"
        after = replace(after, status=status, error_class="extractor_error", error_message=message)
    return replace(report, models={**report.models, label: after})


def finished_entry(report: ItemReport) -> list[Any]:
    """What the driver must know of a staged report."""
    models = {label: [m.status, m.error_class, m.num_rows] for label, m in report.models.items()}
    return [report.media_id, report.segment.k, report.segment.n, models]


def died_report(item: UnitItem, labels: Sequence[str], segment: Segment) -> ItemReport:
    """The report of an item whose worker died every time it was tried."""
    message = f"the worker died or failed on this item {item.attempt} times"
    return _failed_report(item, labels, segment if segment.n else Segment(0, 1), MediaFacts(), "worker_died", message)


def moving_report(item: UnitItem, labels: Sequence[str], facts: MediaFacts) -> ItemReport:
    """The report of a long item of which segments were read from several versions, every time it was tried.

    Args:
        facts: Of one of them.
    """
    message = f"the file was replaced or written to while it was read, {item.attempt} times"
    return _failed_report(item, labels, Segment(0, 1), facts, "corrupt", message)


def _failed_report(
    item: UnitItem, labels: Sequence[str], segment: Segment, facts: MediaFacts, error_class: str, message: str
) -> ItemReport:
    failed = ModelReport("failed", error_class=error_class, error_message=message, retryable=True)
    models = dict.fromkeys(labels, failed)
    return ItemReport(item.media_id, item.uri, segment, facts, item.attempt, time.time(), models)
