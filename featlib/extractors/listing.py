"""What ``featlib models`` prints."""

import json
from dataclasses import asdict
from typing import Any

from featlib.extractors.registry import Description, describe, names

_COLUMNS = ("network", "input", "frames", "feature", "params M", "GFLOPs", "default weights")


def as_json(name: str | None) -> str:
    """One network as a JSON object, or all as a list."""
    found: Any = _plain(describe(name)) if name else [_plain(describe(n)) for n in names()]
    return json.dumps(found, indent=2)


def as_text(name: str | None) -> str:
    """One network in lines, or all in a table."""
    return _card(describe(name)) if name else _table([describe(n) for n in names()])


def _plain(found: Description) -> dict[str, Any]:
    return {**asdict(found), "frames": _frames(found)}


def _frames(found: Description) -> int:
    """Frames in one clip of the default sampling; 1 for a frame model."""
    return 1 if found.kind == "frame" else int(found.sampling.split(",")[0].removeprefix("frames="))


def _size(found: Description) -> str:
    crop = found.input.crop
    return "x".join(map(str, crop)) if crop else "any"


def _row(found: Description) -> tuple[str, ...]:
    return (
        found.name,
        _size(found),
        str(_frames(found)),
        "x".join(map(str, found.feature_shape)),
        f"{found.parameters / 1e6:.2f}",
        f"{found.flops / 1e9:.2f}",
        found.default_weights,
    )


def _table(found: list[Description]) -> str:
    rows = [_COLUMNS, *(_row(d) for d in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _card(found: Description) -> str:
    pixels = found.input.pixels
    resize = "x".join(map(str, pixels.resize)) or "none"
    lines = {
        "network": f"{found.name} ({found.family}, from {found.source})",
        "reads": f"{found.kind}s of {_size(found)}, resize {resize} {pixels.interpolation}"
        + (", antialias" if pixels.antialias else ""),
        "frames": str(_frames(found)),
        "mean, std": f"{found.input.mean}, {found.input.std}",
        "sampling": found.sampling,
        "feature": f"{list(found.feature_shape)} float32 at layer {found.layer}",
        "parameters": f"{found.parameters:,}",
        "FLOPs": f"{found.flops / 1e9:.2f} G for one {found.kind} (a multiply-add counts as two)",
        "weights": f"{', '.join(found.weights)} (default: {found.default_weights})",
    }
    return "\n".join(f"{name + ':':<12} {text}" for name, text in lines.items())
