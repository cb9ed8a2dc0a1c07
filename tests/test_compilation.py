"""Whether a network is compiled: arithmetic on the plan, and what binds a partition of half precision."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from featlib.compilation import NOTHING, Asked, Work, asked, bf16_hint, decide, described, expected_rows, lines, settled
from featlib.config import ExtractConfig, ModelConfig, extract_config, fingerprint
from featlib.extractors.resolve import ResolvedModel, resolve
from featlib.items import PlanItem
from featlib.sampling import ClipSampling, FrameSampling
from featlib.storage import StoreOptions

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


def test_layers_of_one_forward_pass_share_the_decision_of_the_first() -> None:
    two = [model(label="a"), model(label="b", layer="logits")]
    found, _ = settled(two, AUTO, {}, {"a": MUCH, "b": LITTLE})
    assert [m.arithmetic for m in found] == ["compiled", "compiled"]
    assert found[0].trunk == found[1].trunk


def test_what_is_never_compiled() -> None:
    ((fp16,), _) = settled([model(precision="fp16")], Asked("on", "on"), {}, {})
    assert fp16.arithmetic == "plain"


def test_the_record_of_a_partition_states_the_tolerance() -> None:
    assert "a relative L2 of 1e-05 from plain fp32" in described(replace(model(), arithmetic="compiled"))
    half = model(precision="bf16")
    assert described(half) == "plain, torch's autocast to bf16"
    assert described(replace(half, arithmetic="compiled")).startswith("compiled in bf16, batch norm folded")


def config(**settings: object) -> ExtractConfig:
    models = [{"network": "resnet18"}]
    return extract_config({"manifest": "m", "output": "o", "dataset": "d", "models": models, **settings})


def test_gpus_run_no_compiled_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert asked(config(device="cuda", compile="on")) == Asked("off", "off")
    assert asked(config(device="cpu", compile="on")) == Asked("on", "on")
    assert asked(config(ray_address="ray:6379")) == Asked("auto", "off")


@pytest.mark.parametrize(("given", "read"), [(True, "on"), (False, "off"), ("auto", "auto")])
def test_yaml_reads_on_and_off_as_true_and_false(given: object, read: str) -> None:
    assert config(compile=given).compile == read


def test_works_of_a_plan_are_those_of_its_open_items() -> None:
    from featlib.compilation import works
    from featlib.plan import Plan

    class Items:
        def shard(self, shard: int) -> list[PlanItem]:
            return [PlanItem(f"{shard}-{i}", "a.mp4", end_s=10.0) for i in range(2)]

    names = np.array([b"a", b"b", b"c", b"d"])
    plan = Plan((), names, names, np.array([0, 0, 1, 1], np.int32))
    needs = {"resnet18": np.array([True, False, True, True])}
    found = works([model()], needs, plan, Items(), 4)["resnet18"]  # type: ignore[arg-type]
    assert (found.rows, found.cores) == (30.0, 4)
    assert found.flops == pytest.approx(3.6e9, rel=0.02)  # published: 1.81 G multiply-adds
