"""Whether a network is compiled: arithmetic on the plan, and what binds a partition of half precision."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from featlib import job
from featlib.compilation import (
    NOTHING,
    Asked,
    Work,
    asked,
    bf16_hint,
    checked,
    decide,
    described,
    expected_rows,
    lines,
    settled,
    works,
)
from featlib.config import ExtractConfig, ModelConfig, extract_config, fingerprint
from featlib.extractors.resolve import ResolvedModel, resolve
from featlib.items import PlanItem
from featlib.layout import Keys
from featlib.plan import Plan
from featlib.progress import SilentReporter
from featlib.sampling import ClipSampling, FrameSampling
from featlib.start import RayStart
from featlib.storage import Store, StoreOptions

AUTO = Asked("auto", "auto")
MUCH, LITTLE = Work(1e6, 8e9, 2), Work(100, 8e9, 2)


@cache
def model(network: str = "resnet18", **settings: str) -> ResolvedModel:
    values = {"network": network, "weights": "random:0", **settings}
    return resolve(ModelConfig.model_validate(values), StoreOptions())


@pytest.mark.parametrize(
    ("item", "sampling", "rows"),
    [
        (PlanItem("i", "a.jpg", size=9_000_000), FrameSampling.parse("fps:2"), 1),
        (PlanItem("i", "a.jpg"), ClipSampling(16), 0),
        (PlanItem("v", "a.mp4", start_s=10.0, end_s=20.0), FrameSampling.parse("fps:2"), 20),
        (PlanItem("v", "a.mp4", start_s=10.0, end_s=20.0), FrameSampling.parse("all"), 250),
        (PlanItem("v", "a.mp4", start_s=10.0, end_s=20.0), FrameSampling.parse("every:10"), 25),
        (PlanItem("v", "a.mp4", size=7_500_000), FrameSampling.parse("fps:1"), 60),
        (PlanItem("v", "a.mp4"), FrameSampling.parse("uniform:8"), 8),
        (PlanItem("v", "a.mp4", end_s=10.0), ClipSampling(16), 15),
        (PlanItem("v", "a.mp4", end_s=10.0), ClipSampling(16, hop=8, fps=FrameSampling.parse("fps:8").value), 9),
        (PlanItem("v", "a.mp4", end_s=0.1), ClipSampling(16), 0),
        (PlanItem("v", "a.mp4", end_s=0.1), FrameSampling.parse("fps:1"), 1),
    ],
)
def test_rows_that_the_plan_lets_one_expect(item: PlanItem, sampling: FrameSampling | ClipSampling, rows: int) -> None:
    assert expected_rows(item, sampling) == rows


def test_auto_compiles_where_it_saves_clearly_more_than_it_costs() -> None:
    assert decide("auto", MUCH, "fp32").arithmetic == "compiled"
    assert decide("auto", LITTLE, "fp32").arithmetic == "plain"
    assert decide("on", LITTLE, "fp32").arithmetic == "compiled"
    assert decide("off", MUCH, "fp32").arithmetic == "plain"


def test_more_cores_need_more_work() -> None:
    work = Work(60_000, 8e9, 2)
    assert decide("auto", work, "fp32").arithmetic == "compiled"
    assert decide("auto", replace(work, cores=64), "fp32").arithmetic == "plain"


def test_a_network_that_was_compiled_before_needs_less_work() -> None:
    work = Work(6_000, 8e9, 2)
    assert decide("auto", work, "fp32").arithmetic == "plain"
    assert decide("auto", replace(work, is_kept=True), "fp32").arithmetic == "compiled"


@pytest.mark.parametrize(
    ("flags", "hinted"), [("fpu avx2", True), ("fpu avx512_bf16", False), ("amx_bf16", False), ("", False)]
)
def test_bf16_on_a_processor_without_it(flags: str, hinted: bool) -> None:
    half, info = model(precision="bf16"), f"processor : 0\nflags : {flags}\n" if flags else ""
    assert bool(bf16_hint([half], AUTO, info)) == hinted
    assert bf16_hint([model()], AUTO, info) == ()


def test_a_line_says_what_was_decided_and_by_what() -> None:
    models, says = settled([model()], AUTO, {}, {"resnet18": MUCH})
    assert lines(models, says) == ("resnet18: compiled (about 27.8 h of forward passes)",)
    models, says = settled([model()], AUTO, {}, {"resnet18": LITTLE})
    assert lines(models, says) == ("resnet18: plain (about 10 s of forward passes: too few to compile for)",)


def test_half_precision_stays_with_what_its_partition_was_begun_with() -> None:
    half = model(precision="bf16")
    begun_plain, begun_compiled = half.semantics(), replace(half, arithmetic="compiled").semantics()
    for before, work, expected in (
        (begun_plain, MUCH, "plain"),
        (begun_compiled, NOTHING, "compiled"),
        (None, MUCH, "compiled"),
        (None, LITTLE, "plain"),
    ):
        ((found,), _) = settled([half], AUTO, {"resnet18": before}, {"resnet18": work})
        assert found.arithmetic == expected
        if before is not None:
            assert fingerprint(found.semantics()) == fingerprint(before)


def test_fp32_may_change_its_arithmetic_within_a_partition() -> None:
    single = model()
    ((found,), _) = settled([single], AUTO, {"resnet18": single.semantics()}, {"resnet18": MUCH})
    assert found.arithmetic == "compiled"
    assert found.semantics() == single.semantics()


@pytest.mark.parametrize("works", [{"a": MUCH, "b": LITTLE}, {"a": LITTLE, "b": MUCH}, {"b": MUCH}])
def test_layers_of_one_forward_pass_are_decided_by_the_one_with_the_most_work(works: dict[str, Work]) -> None:
    two = [model(label="a"), model(label="b", layer="logits")]
    found, says = settled(two, AUTO, {}, works)
    assert [m.arithmetic for m in found] == ["compiled", "compiled"]
    assert found[0].trunk == found[1].trunk
    assert says == dict.fromkeys("ab", "about 27.8 h of forward passes")


def test_the_rows_of_one_layer_go_as_deep_as_the_other() -> None:
    two = [model(label="a"), model(label="b", layer="layer1")]
    _, says = settled(two, AUTO, {}, {"a": replace(LITTLE, flops=8e9), "b": replace(MUCH, flops=1e9)})
    assert says == dict.fromkeys("ab", "about 27.8 h of forward passes")


def test_what_is_never_compiled() -> None:
    ((fp16,), _) = settled([model(precision="fp16")], Asked("on", "on"), {}, {})
    assert fp16.arithmetic == "plain"


def test_the_record_of_a_partition_states_the_tolerance() -> None:
    assert "a relative L2 of 1e-05 from plain fp32" in described(replace(model(), arithmetic="compiled"))
    half = model(precision="bf16")
    assert described(half) == "plain, torch's autocast to bf16"
    assert described(replace(half, arithmetic="compiled")).startswith("compiled in bf16, batch norm folded")


def config(**settings: object) -> ExtractConfig:
    models = [{"network": "resnet18", "weights": "random:0"}]
    return extract_config({"manifest": "m", "output": "o", "dataset": "d", "models": models, **settings})


def test_gpus_run_no_compiled_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for device in ("cuda", "auto"):
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        assert asked(config(device=device, compile="on")) == Asked("off", "off", "it runs on a GPU")
    assert asked(config(device="cpu", compile="on")) == Asked("on", "on")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert asked(config(device="auto", compile="on")) == Asked("on", "on")


def test_what_the_user_never_said_is_not_given_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    both = [model(), model(label="half", precision="bf16")]
    works = {"resnet18": MUCH, "half": MUCH}

    def said(**settings: object) -> tuple[str, ...]:
        return lines(*settled(both, asked(config(**settings)), {}, works))

    on_gpu = ("resnet18: plain (it runs on a GPU)", "half: plain (it runs on a GPU)")
    assert said(device="cuda") == said(device="cuda", compile="on") == on_gpu
    off = ("resnet18: plain (--compile off)", "half: plain (--compile off)")
    assert said(device="cuda", compile="off") == said(ray_address="ray:6379", compile="off") == off
    assert said(ray_address="ray:6379") == (
        "resnet18: compiled (about 27.8 h of forward passes)",
        "half: plain (the cluster may have GPUs; --device cpu where it has none)",
    )


@pytest.mark.parametrize(("given", "read"), [(True, "on"), (False, "off"), ("auto", "auto")])
def test_yaml_reads_on_and_off_as_true_and_false(given: object, read: str) -> None:
    assert config(compile=given).compile == read


class _Items:
    def shard(self, shard: int) -> list[PlanItem]:
        return [PlanItem(f"{shard}-{i}", "a.mp4", end_s=10.0) for i in range(2)]


NAMES = np.array([b"a", b"b", b"c", b"d"])
PLAN = Plan((), NAMES, NAMES, np.array([0, 0, 1, 1], np.int32))


def test_works_of_a_plan_are_those_of_its_open_items() -> None:
    needs = {"resnet18": np.array([True, False, True, True])}
    found = works([model()], needs, PLAN, _Items(), 4, {})["resnet18"]  # type: ignore[arg-type]
    assert (found.rows, found.cores, found.is_kept) == (30.0, 4, False)
    assert found.flops == pytest.approx(3.6e9, rel=0.02)  # published: 1.81 G multiply-adds


def test_what_is_kept_is_asked_for_all_layers_and_the_threads_of_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[tuple[list[str], int]] = []

    def kept(models: Sequence[ResolvedModel], threads: int) -> bool:
        looked_up.append(([m.layer for m in models], threads))
        return threads == 4

    monkeypatch.setattr("featlib.inference.is_probably_kept", kept)
    three = [model(label="a"), model(label="b", layer="logits"), model(label="elsewhere", weights="random:1")]
    needs = dict.fromkeys(("a", "b", "elsewhere"), np.ones(4, bool))
    found = works(three, needs, PLAN, _Items(), 4, {"a": 4, "b": 4})  # type: ignore[arg-type]
    assert looked_up == [(["penultimate", "logits"], 4)] * 2
    assert {label: work.is_kept for label, work in found.items()} == {"a": True, "b": True, "elsewhere": False}


@pytest.mark.parametrize("reason", ["", "there is no C++ compiler"])
def test_what_is_tried_here_is_what_the_workers_will_look_for(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[list[str], int | None]] = []

    class Trial:
        def __init__(self, models: list[ResolvedModel], payload: bytes, *, threads: int | None, is_trial: bool) -> None:
            assert is_trial
            tried.append(([m.label for m in models], threads))
            torch.set_num_threads(3)
            self.notes = (f"{models[0].label}: not compiled: {reason}",) if reason else ()

    monkeypatch.setattr("featlib.inference.Engine", Trial)
    settings = {"precision": "bf16"}
    models = [
        model(label="single"),
        *(replace(model(label=name, layer=layer, **settings), arithmetic="compiled")
          for name, layer in (("begun", "penultimate"), ("new", "logits"))),
        replace(model(label="old", weights="random:1", **settings), arithmetic="compiled"),
        model(label="plain", weights="random:2", **settings),
    ]  # fmt: skip
    registered = {label: {"arithmetic": "compiled"} for label in ("begun", "old")}
    says = {m.label: "much work" for m in models}
    before = torch.get_num_threads()
    found, said = checked(models, says, registered, StoreOptions(), {"begun": 2, "new": 2})
    assert torch.get_num_threads() == before
    assert tried == [(["begun", "new"], 2)]
    assert [m.label for m in found] == [m.label for m in models]
    changed = {m.label for m, was in zip(found, models, strict=True) if m != was}
    assert changed == ({"new"} if reason else set())
    assert said == says | ({"new": f"not compiled: {reason}"} if reason else {})


class _Open:
    """Plan minus published, where everything is open."""

    needs = dict.fromkeys(("resnet18",), np.ones(4, bool))


@pytest.mark.parametrize(("settings", "is_guessed"), [({"device": "cuda"}, False), ({"device": "cpu"}, True)])
def test_work_is_guessed_only_where_something_may_be_compiled(
    settings: dict[str, str], is_guessed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, int]] = []

    def guessed(*arguments: object) -> dict[str, Work]:
        given.append(arguments[-1])  # type: ignore[arg-type]
        return {"resnet18": LITTLE}

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("featlib.compilation.works", guessed)
    store, mine = Store(str(tmp_path)), config(extract_threads=3, **settings)
    ray = RayStart(mine, (model(),), store)
    _, said = job._settled(mine, store, Keys("d"), (model(),), PLAN, _Open(), ray, SilentReporter())  # type: ignore[arg-type]
    assert given == [{"resnet18": 3}] * is_guessed
    reason = "about 10 s of forward passes: too few to compile for" if is_guessed else "it runs on a GPU"
    assert said == (f"resnet18: plain ({reason})",)
