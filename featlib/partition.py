"""One fingerprint a partition: what made a label's features is written down, and another is refused."""

import json
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

import featlib
from featlib.compilation import described
from featlib.config import fingerprint
from featlib.errors import ConfigError, DamagedError
from featlib.layout import Keys, PartName
from featlib.redaction import redact
from featlib.sealed import open_sealed
from featlib.shards.schema import Provenance, read_footer, reading, to_json
from featlib.storage import Store

if TYPE_CHECKING:
    from featlib.extractors.resolve import ResolvedModel

_PACKAGES = ("torch", "torchvision", "av", "pyarrow", "ray", "opencv-contrib-python-headless", "timm")


def provenance(dataset: str, model: "ResolvedModel") -> Provenance:
    """What makes the features of one model in one dataset."""
    semantics = model.semantics()
    record = {"weights_source": redact(model.weights_source), "featlib": featlib.__version__}
    record["arithmetic"] = described(model)
    for package in _PACKAGES:
        try:
            record[package] = version(package)
        except PackageNotFoundError:
            record[package] = "absent"
    return Provenance(dataset, model.label, fingerprint(semantics), semantics, record)


def check(store: Store, keys: Keys, wanted: Mapping[str, Provenance], *, another: str = "--model NEWLABEL=...") -> None:
    """Refuses a label whose partition was made with other settings.

    Args:
        another: How the user gives another label.

    Raises:
        ConfigError: Names the setting that differs and both ways out.
    """
    for label, mine in wanted.items():
        theirs = registered(store, keys, label)
        if theirs is not None and _differ(theirs, mine) and _has_objects(store, keys, label):
            raise _made_otherwise(store, keys, label, theirs, mine, another)


def _differ(theirs: Mapping[str, str], mine: Provenance) -> bool:
    return fingerprint(theirs) != fingerprint(mine.semantics)


def _made_otherwise(
    store: Store, keys: Keys, label: str, theirs: Mapping[str, str], mine: Provenance, another: str
) -> ConfigError:
    names = sorted(n for n in {*theirs, *mine.semantics} if theirs.get(n) != mine.semantics.get(n))
    differs = "; ".join(f"{n} was {theirs.get(n)}, is now {mine.semantics.get(n)}" for n in names)
    return ConfigError(
        f"model={label} of dataset {keys.dataset} was made with other settings ({differs}); use another label "
        f"({another}) or remove the partition (featlib drop --output {redact(store.url)} "
        f"--dataset {keys.dataset} --model {label})"
    )


def registered(store: Store, keys: Keys, label: str) -> dict[str, str] | None:
    """The settings that a partition was made with; None when there is no such partition."""
    key = keys.model(label)
    try:
        data = store.get(key)
    except FileNotFoundError:
        return _from_shard(store, keys, label)
    settings = _sound_settings(data)
    if settings is None:  # a bit was flipped; shards have seals
        settings = _from_shard(store, keys, label)
    if settings is None:
        raise DamagedError(key)
    return settings


def recorded(store: Store, keys: Keys, label: str) -> str | None:
    """The fingerprint that was written down of a partition; None where there is none, or a bit of it was flipped."""
    try:
        settings = _sound_settings(store.get(keys.model(label)))
    except (FileNotFoundError, DamagedError):
        return None
    return None if settings is None else fingerprint(settings)


def _sound_settings(data: bytes) -> dict[str, str] | None:
    """Those that were written down; None when they are not what they were."""
    try:
        body = json.loads(data)
        settings: dict[str, str] = body["semantics"]
        return settings if fingerprint(settings) == body["fingerprint"] else None
    except (ValueError, KeyError, TypeError):
        return None


def _has_objects(store: Store, keys: Keys, label: str) -> bool:
    """Whether anything was published or staged for a label."""
    if store.list(keys.outcomes(label)) or store.list(keys.features(label)):
        return True
    return any(True for _ in _pieces_of(store, keys, label))


def _pieces_of(store: Store, keys: Keys, label: str) -> Iterator[str]:
    """Keys of the pieces with rows of a label, of which a few hundred at a time are in memory."""
    from featlib.shards.staging import piece_keys, read_shards

    for _, pieces in read_shards(store, piece_keys(store, keys)):
        yield from (piece.key for piece in pieces if label in piece.fingerprints)


def _from_shard(store: Store, keys: Keys, label: str) -> dict[str, str] | None:
    """From a shard's footer: the features stand even where somebody removed ``_featlib``."""
    settings = _settings_in(store, keys.outcomes(label))
    return _settings_in(store, keys.features(label)) if settings is None else settings


def _settings_in(store: Store, folder: str) -> dict[str, str] | None:
    """Those of the first object in a folder."""
    for key in [info.key for info in store.list(folder) if PartName.parse(info.key) is not None]:
        if store.stat(key) is None:  # dropped, and listed still
            continue
        with reading(key), open_sealed(store, key) as file:
            footer = read_footer(pq.ParquetFile(file).schema_arrow.metadata)
        settings: dict[str, str] = json.loads(footer["featlib.semantics"])
        return settings
    return None


def register(
    store: Store, keys: Keys, wanted: Mapping[str, Provenance], *, another: str = "--model NEWLABEL=..."
) -> None:
    """Writes down the settings of labels that have none yet, or only those of a run that made nothing.

    Raises:
        ConfigError: As ``check``; also where what was written down says otherwise than what was published.
    """
    check(store, keys, wanted, another=another)
    for label, mine in wanted.items():
        made = _settings_in(store, keys.outcomes(label))
        if made is not None and _differ(made, mine):
            raise _made_otherwise(store, keys, label, made, mine, another)
        theirs = registered(store, keys, label)
        if theirs is None or _differ(theirs, mine) or store.stat(keys.model(label)) is None:
            body = {"fingerprint": mine.fingerprint, "semantics": dict(mine.semantics), "record": dict(mine.record)}
            store.put(keys.model(label), to_json(body).encode())


def drop(
    store: Store,
    keys: Keys,
    label: str,
    guard: Callable[[], None] = lambda: None,
    confirm: Callable[[], None] = lambda: None,
) -> int:
    """Removes a partition: features, outcomes, what is staged and what was written down of it.

    What says that something is done goes before it: cut anywhere, the next job finds less done than is there and makes
    it anew, never more. The plan of the dataset goes with its last partition, the last generation first, and then what
    was written down of that partition: until nothing is left, the same drop may be asked for again.

    Args:
        guard: Called before each object is removed; raises when this process may not any more.
        confirm: The same before the first of the partition and of the plan: costs more, and is surer.

    Returns:
        Number of objects removed.
    """
    gone = list(_pieces_of(store, keys, label))
    outcomes = [o.key for o in store.list(f"outcomes/dataset={keys.dataset}")]
    mine = [key for key in outcomes if key.startswith(f"{keys.outcomes(label)}/")]
    gone += mine + [o.key for folder in (keys.features(label), keys.doubts(label)) for o in store.list(folder)]
    models = [o.key for o in store.list(f"{keys.own}/models")]
    is_last = len(mine) == len(outcomes) and not set(models) - {keys.model(label)}
    if not is_last and keys.model(label) in models:
        gone.append(keys.model(label))
    _remove(store, gone, guard, confirm)
    if is_last:
        rest = [o.key for o in store.list(keys.own) if not o.key.startswith(keys.drivers)]
        rest.sort(key=lambda key: (key not in models, key), reverse=True)
        _remove(store, rest, guard, confirm)
        gone += rest
    return len(gone)


def _remove(store: Store, in_order: list[str], guard: Callable[[], None], confirm: Callable[[], None]) -> None:
    confirm()
    for key in in_order:
        guard()
        store.delete([key])
