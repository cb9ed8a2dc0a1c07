"""What ``featlib models`` prints."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from featlib.errors import ConfigError
from featlib.extractors import timm_networks
from featlib.extractors.registry import Description, describe, names, problems

if TYPE_CHECKING:
    from featlib.extractors.conformance import Finding

_COLUMNS = ("network", "input", "frames", "feature", "params M", "GFLOPs", "default weights", "source")


def as_json(found: Description | list[Description]) -> str:
    """One network as a JSON object, or several as a list."""
    plain: Any = [_plain(d) for d in found] if isinstance(found, list) else _plain(found)
    return json.dumps(plain, indent=2)


def as_text(found: Description | list[Description]) -> str:
    """One network in lines, or all in a table, with a word on those that are not in it."""
    if isinstance(found, Description):
        return _card(found)
    more = ["and timm:NAME for each image classifier of timm, like timm:resnet18.a1_in1k"]
    return "\n".join([_table(_COLUMNS, [_row(d) for d in found]), *more * timm_networks.is_installed()])


def findings_as_json(findings: "tuple[Finding, ...]") -> str:
    """What the conformance test found, as a list."""
    return json.dumps([asdict(f) for f in findings], indent=2)


def findings_as_text(findings: "tuple[Finding, ...]") -> str:
    """What the conformance test found, in a table."""
    results = {True: "ok", False: "FAILED", None: "-"}
    figures = ["" if f.figure is None else f"{f.figure:.2g}" for f in findings]
    rows = [(f.check, results[f.passed], figure, f.message) for f, figure in zip(findings, figures, strict=True)]
    return _table(("check", "result", "relative L2", ""), rows)


def all_described() -> tuple[list[Description], list[str]]:
    """Every network by plain name, and one line for each plug-in, or network of one, that cannot be described."""
    described, wrong = [], problems()
    for name in names():
        try:
            described.append(describe(name))
        except ConfigError as error:
            wrong.append(str(error))
    return described, wrong


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
        "x".join(map(str, found.feature_shape)) or "boxes",
        f"{found.parameters / 1e6:.2f}",
        f"{found.flops / 1e9:.2f}",
        found.default_weights,
        found.source,
    )


def _table(columns: tuple[str, ...], body: Sequence[tuple[str, ...]]) -> str:
    rows = [columns, *body]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
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
        "feature": f"{list(found.feature_shape)} float32 at layer {found.layer}"
        if found.feature_shape
        else "boxes alone",
        "parameters": f"{found.parameters:,}",
        "FLOPs": f"{found.flops / 1e9:.2f} G for one {found.kind} (a multiply-add counts as two)",
        "weights": f"{', '.join(found.weights)} (default: {found.default_weights})",
    }
    return "\n".join(f"{name + ':':<12} {text}" for name, text in lines.items())
