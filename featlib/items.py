"""A media item: what the plan says of it, and what became of it in a run (the value behind an outcome row)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from featlib.spec import MediaFacts, Segment, Status

_SEVERITY: tuple[Status, ...] = ("ok", "skipped", "partial", "failed")


@dataclass(frozen=True)
class PlanItem:
    """One media item of the plan, with what the manifest said of it."""

    media_id: str
    uri: str
    start_s: float | None = None
    end_s: float | None = None
    size: int | None = None
    label: str | None = None
    split: str | None = None
    manifest: str | None = None


@dataclass(frozen=True)
class ModelReport:
    """What one model made of one item (or of one segment of it)."""

    status: Status
    num_rows: int = 0
    error_class: str | None = None
    error_message: str | None = None
    retryable: bool = False


@dataclass(frozen=True)
class ItemReport:
    """One item, or segment ``k`` of ``n`` of it, through all models of a unit.

    Args:
        created: When it was made, seconds since the epoch; the newest wins when the source changed in between.
        models: By label.
    """

    media_id: str
    uri: str
    segment: Segment
    facts: MediaFacts
    attempts: int = 1
    created: float = 0.0
    models: Mapping[str, ModelReport] = field(default_factory=dict)

    @property
    def source(self) -> tuple[int | None, str | None]:
        """Size and etag of what was read: segments of different sources do not belong together."""
        return self.facts.size, self.facts.etag

    def to_dict(self) -> dict[str, Any]:
        parts = {"segment": vars(self.segment).copy(), "facts": vars(self.facts).copy()}
        return vars(self) | parts | {"models": {label: vars(m).copy() for label, m in self.models.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ItemReport":
        return cls(
            **{
                **data,
                "segment": Segment(**data["segment"]),
                "facts": MediaFacts(**_known(MediaFacts, data["facts"])),
                "models": {label: ModelReport(**m) for label, m in data["models"].items()},
            }
        )


def _known(cls: type[MediaFacts], data: Mapping[str, Any]) -> dict[str, Any]:
    names = cls.__dataclass_fields__
    return {k: v for k, v in data.items() if k in names}


def merge_models(reports: Iterable[ModelReport]) -> ModelReport:
    """One report for a whole item from those of its segments: the rows add up and the worst status stays.

    A failed segment beside good ones is ``partial``, because rows were kept; broken segments without any row are
    ``failed``.
    """
    parts = list(reports)
    if len(parts) == 1 and parts[0].status in ("ok", "skipped"):
        return parts[0]
    worst = max(parts, key=lambda r: _SEVERITY.index(r.status))
    rows = sum(r.num_rows for r in parts)
    broken = worst.status in ("partial", "failed")
    status: Status = ("partial" if rows else "failed") if broken else worst.status
    return replace(worst, status=status, num_rows=rows)


def merge_facts(facts: Iterable[MediaFacts]) -> MediaFacts:
    """The facts of a whole item from those of its segments: work adds up, the rest is what any of them saw.

    ``frames_decoded`` counts each frame once; ``frames_twice`` those that a seam made to be decoded again.
    """
    parts = list(facts)
    if len(parts) == 1 and not parts[0].frames_twice:
        return parts[0]
    best = max(parts, key=lambda f: (f.codec is not None, f.duration_s is not None))
    return replace(
        best,
        frames_decoded=sum(f.frames_decoded - f.frames_twice for f in parts),
        frames_twice=sum(f.frames_twice for f in parts),
        decode_s=sum(f.decode_s for f in parts),
    )
