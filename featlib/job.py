"""The main job: manifest -> plan -> decode -> extract -> stage -> publish, resumable at every point."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featlib import compilation, partition
from featlib.backlog import Backlog
from featlib.config import ExtractConfig
from featlib.drivers import Claim
from featlib.layout import Keys
from featlib.ledger import Ledger, Rows, changed_rows
from featlib.leftovers import remove_late, remove_units
from featlib.manifest import read_manifest
from featlib.plan import Plan, PlanItems, grow, read_plan
from featlib.progress import Reporter, SilentReporter
from featlib.publisher import remove_history
from featlib.run import Run, Task
from featlib.shards.publish import Event
from featlib.shards.schema import Provenance, to_json
from featlib.start import RayStart
from featlib.storage import Store, StoreOptions
from featlib.summary import Summary
from featlib.workers import DECODE

if TYPE_CHECKING:
    from featlib.extractors.resolve import ResolvedModel

__all__ = ["Summary", "extract"]

_FIRST_CONTACT_S = 20.0


def extract(
    config: ExtractConfig, *, reporter: Reporter | None = None, on_event: Event = lambda name, what: None
) -> Summary:
    """Runs the job that ``featlib extract`` runs; a repeated call goes on where the last one stopped.

    Args:
        on_event: Called in this process with the name of what has just happened (``plan_written``, ``unit_staged``,
            ``features_put``, ``outcomes_put``, ``shard_published``, ``before_summary``) and to what it happened.

    Raises:
        ConfigError: The configuration or the manifest is wrong; nothing was read from the media.
        StoppedError: The job cannot go on now; the same call goes on later.
    """
    with reporter or SilentReporter() as shown:
        return run_job(config, shown, on_event)


def run_job(config: ExtractConfig, shown: Reporter, on_event: Event, decode: str = DECODE) -> Summary:
    """As ``extract``.

    Args:
        decode: ``module:function`` with the signature of ``featlib.media.decode.decode_item``.
    """
    from featlib.extractors.resolve import resolve

    options = StoreOptions(config.endpoint_url, config.anon)
    store, keys = Store(config.output, options), Keys(config.dataset)
    # Quick to tell a wrong endpoint; once a job is under way its store may be away for longer.
    first = Store(config.output, replace(options, deadline_s=_FIRST_CONTACT_S))
    is_new = not first.list(keys.plan)
    shown.stage("reading weights")
    models = tuple(resolve(model, options) for model in config.models)
    before = {m.label: partition.registered(store, keys, m.label) for m in models}
    models, _ = compilation.settled(models, compilation.asked(config), before, {})
    partition.check(store, keys, _provenance(config, models))
    ray = RayStart(config, models, store)
    if is_new:  # nothing was ever planned, so there is work; else there may be none
        ray.begin()
    try:
        return _claimed(config, shown, on_event, decode, store, models, ray)
    except Exception:
        ray.wait()
        raise


def _claimed(
    config: ExtractConfig,
    shown: Reporter,
    on_event: Event,
    decode: str,
    store: Store,
    models: "tuple[ResolvedModel, ...]",
    ray: RayStart,
) -> Summary:
    """The job as the only driver of its dataset."""
    keys, options = Keys(config.dataset), store.options
    with Claim(store, keys) as claim:
        shown.stage("reading the manifest")
        claim.settle()
        remove_units(store, keys, claim)
        # Again: a driver that ended meanwhile may have registered.
        partition.check(store, keys, _provenance(config, models))
        plan, selected = _plan(config, store, keys, options, claim)
        on_event("plan_written", str(len(plan.ids)))
        opened = _opened(config, store, keys, plan, selected)
        models, forward = _settled(config, store, keys, models, plan, opened, ray, shown)
        provenance = _provenance(config, models)
        claim.confirm()
        partition.register(store, keys, provenance)
        remove_history(store, keys, list(provenance), claim.confirm)
        task = replace(_task(config, store, keys, models, provenance, plan, opened, ray), decode=decode)
        run = Run(task, claim, shown, on_event)
        if task.backlog.num_items:
            run.work()
        else:
            remove_late(store, keys, claim, provenance)
        on_event("before_summary", config.dataset)
        summary = _summary(task, run, selected, forward)
        if summary.did_work:
            store.put(f"{keys.runs}/{claim.id}.json", to_json(summary.to_dict()).encode())
        return summary


def _plan(config: ExtractConfig, store: Store, keys: Keys, options: StoreOptions, claim: Claim) -> tuple[Plan, Rows]:
    batches = read_manifest(
        config.manifest,
        uri_column=config.uri_column,
        limit=config.limit,
        local_media=config.local_media,
        options=options,
    )
    return grow(store, keys, read_plan(store, keys), batches, config.shard_items, claim.confirm)


def _provenance(config: ExtractConfig, models: "Sequence[ResolvedModel]") -> dict[str, Provenance]:
    """By label."""
    return {m.label: partition.provenance(config.dataset, m) for m in models}


@dataclass(frozen=True)
class _Opened:
    """Plan minus published.

    Args:
        needs: By label, which items of the plan still need it.
    """

    ledger: Ledger
    needs: dict[str, Rows]


def _opened(config: ExtractConfig, store: Store, keys: Keys, plan: Plan, selected: Rows) -> _Opened:
    ledger = Ledger(plan, list(config.labels))
    ledger.load(store, keys)
    again = np.zeros(len(selected), dtype=bool)
    if config.changed:
        for label in ledger.labels:
            again[list(changed_rows(store, keys, plan, label, store.options))] = True
    needs = {
        label: selected & (~ledger.done(label, retry_failed=config.retry_failed) | again) for label in ledger.labels
    }
    return _Opened(ledger, needs)


def _settled(
    config: ExtractConfig,
    store: Store,
    keys: Keys,
    models: "tuple[ResolvedModel, ...]",
    plan: Plan,
    opened: _Opened,
    ray: RayStart,
    shown: Reporter,
) -> "tuple[tuple[ResolvedModel, ...], tuple[str, ...]]":
    """The models with the arithmetic that this job's work asks for, and a line on each."""
    if not any(need.any() for need in opened.needs.values()):
        return models, ()
    before = {m.label: partition.registered(store, keys, m.label) for m in models}
    asked = compilation.asked(config)
    wishes = {asked.fp32, asked.half}
    work, threads = {}, {}
    if wishes != {"off"} and compilation.is_local(config.ray_address):
        num_open = int(np.any(list(opened.needs.values()), axis=0).sum())  # about as many units, or more than enough
        threads = ray.expected().for_units(num_open).threads(config.labels)
    if "auto" in wishes:
        cores = compilation.cores(config.ray_address)
        work = compilation.works(models, opened.needs, plan, PlanItems(store, plan), cores, threads)
    models, says = compilation.settled(models, asked, before, work)
    models, says = compilation.checked(models, says, before, store.options, threads)
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""
    lines = compilation.lines(models, says) + compilation.bf16_hint(models, asked, text)
    for line in lines:
        shown.stage(line)
    return models, lines


def _task(
    config: ExtractConfig,
    store: Store,
    keys: Keys,
    models: "tuple[ResolvedModel, ...]",
    provenance: Mapping[str, Provenance],
    plan: Plan,
    opened: _Opened,
    ray: RayStart,
) -> Task:
    """What this run has to do."""
    backlog = Backlog(plan, opened.needs, {label: p.fingerprint for label, p in provenance.items()})
    items = PlanItems(store, plan)
    return Task(config, store, keys, models, provenance, items, backlog, opened.ledger, ray)


def _summary(task: Task, run: Run, selected: Rows, forward: tuple[str, ...]) -> Summary:
    ledger, keys, url = task.ledger, task.keys, task.store.url
    return Summary(
        dataset=task.config.dataset,
        media={name or "open": n for name, n in ledger.status_counts(selected).items() if n},
        classes=dict(ledger.class_counts(selected)),
        rows={label: ledger.num_rows(label) for label in ledger.labels},
        features={label: f"{url}/{keys.features(label)}" for label in ledger.labels},
        outcomes={label: f"{url}/{keys.outcomes(label)}" for label in ledger.labels},
        max_failed=task.config.max_failed,
        frames_decoded=run.frames_decoded,
        seconds=run.seconds,
        pools=run.pools,
        did_work=bool(task.backlog.num_items),
        forward=(*forward, *run.notes),
    )
