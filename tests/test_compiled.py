"""Networks as machine code: batch norm folded, held against the plain network, and plain wherever that fails."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featlib.config import ModelConfig
from featlib.extractors.layers import cut
from featlib.extractors.resolve import ResolvedModel, resolve
from featlib.extractors.weights import payload
from featlib.inference import Engine, compiled, default_batch_size, is_probably_kept, prepared
from featlib.inference.compiled import Candidate, CompiledNetwork, NotCompiledError
from featlib.inference.folding import fold_batch_norm
from featlib.inference.kept import Kept
from featlib.storage import StoreOptions

OPTIONS = StoreOptions()
PICTURES = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 3), np.uint8)
ONE_EACH = np.arange(5)[:, None]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.second, self.other = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = self.other(self.second(x)).relu()
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


def small(kind: type[Small] = Small) -> Small:
    torch.manual_seed(0)
    network = kind().eval().requires_grad_(False)
    for norm in (network.norm, network.other):
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            values.copy_(torch.rand(4) + 0.5)
    return network


X = torch.randn((2, 3, 12, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("layers", "folded"),
    [
        (("penultimate",), 2),
        (("logits", "probabilities"), 2),
        (("norm",), 1),  # what lies behind it is cut off
        (("first", "penultimate"), 1),
        (("first", "norm", "second", "other", "penultimate"), 0),
    ],
)
def test_folding_leaves_every_layer_that_is_asked_for_as_it_was(layers: tuple[str, ...], folded: int) -> None:
    expected = [values.clone() for values in cut(small(), layers, "fc").eval()(X)]
    module = cut(small(), layers, "fc").eval()
    assert fold_batch_norm(module) == folded
    for mine, right in zip(module(X), expected, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-6)
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == (1 if layers == ("norm",) else 2) - folded


def test_what_is_more_than_a_batch_norm_is_not_folded() -> None:
    class Louder(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Loud(Small):
        def __init__(self) -> None:
            super().__init__()
            self.norm = Louder(4)

    class Shared(Small):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.norm(self.first(x)).mean((2, 3)) + self.norm(self.first(x + 1)).mean((2, 3)))
            return out

    for kind in (Loud, Shared):
        module = cut(small(kind), ["logits"], "fc").eval()
        expected = module(X)[0]
        assert fold_batch_norm(module) == 0
        torch.testing.assert_close(module(X)[0], expected, rtol=1e-5, atol=1e-6)


def test_a_convolution_that_only_has_more_methods_is_folded_into_and_one_that_computes_more_is_not() -> None:
    class Described(nn.Conv2d):
        """As torchvision's video networks derive theirs."""

        def describe(self) -> str:
            return f"{self.out_channels} filters"

    class Halved(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 2

    for convolution, folded in ((Described, 2), (Halved, 1)):

        class Derived(Small):
            def __init__(self, kind: type[nn.Conv2d] = convolution) -> None:
                super().__init__()
                self.first = kind(3, 4, 3, bias=False)

        module = cut(small(Derived), ["logits"], "fc").eval()
        expected = module(X)[0]
        assert fold_batch_norm(module) == folded
        torch.testing.assert_close(module(X)[0], expected, rtol=1e-5, atol=1e-6)


def test_a_weight_that_is_computed_is_left_alone() -> None:
    network = small()
    nn.utils.parametrizations.weight_norm(network.first)
    module = cut(network, ["logits"], "fc").eval()
    expected = module(X)[0]
    assert fold_batch_norm(module) == 1
    torch.testing.assert_close(module(X)[0], expected, rtol=1e-5, atol=1e-6)


def candidate(strays: float = 0.0, **settings: bool) -> Candidate:
    network = cut(small(), ["penultimate"], "fc").eval()
    expected = network(X)[0]

    def found(outputs: Sequence[Tensor]) -> tuple[float, float]:
        return float((outputs[0] - expected).norm() / expected.norm()) + strays, 1e-5

    return Candidate(network, X, lambda: network(X), found, torch.get_num_threads(), **{"must_pay": False, **settings})


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(tmp_path_factory.mktemp("cache") / "compiled")


def _must_not_be_called(*_: object) -> Path:
    raise NotCompiledError("the compiler was called")


def test_a_network_is_compiled_once(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = candidate()
    expected = mine.module(X)[0]
    first = compiled.compiled(mine, kept)
    monkeypatch.setattr(compiled, "_compiled_package", _must_not_be_called)
    second = compiled.compiled(candidate(), kept)
    for network in (first, second):
        (features,) = network(X)
        torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
        strided = X.to(memory_format=torch.channels_last)
        torch.testing.assert_close(network(strided)[0], features, rtol=0, atol=0)
    with pytest.raises(ValueError, match="compiled for"):
        first(X[:1])
    assert not list(kept.folder.glob("*.build"))
    _changed_or_torn_is_another(kept)


def _changed_or_torn_is_another(kept: Kept) -> None:
    """Within the test above, which has the one entry: another weight, another number of threads, a torn file."""
    other = candidate()
    other.module.get_submodule("network.fc").bias[0] += 1  # type: ignore[index]
    next(other.module.parameters())[0] += 1
    package = next(kept.folder.glob("*.pt2"))
    for changed in (other, replace(candidate(), threads=99)):
        with pytest.raises(NotCompiledError, match="the compiler was called"):
            compiled.compiled(changed, kept)
    package.write_bytes(package.read_bytes()[:-1])
    with pytest.raises(NotCompiledError, match="the compiler was called"):
        compiled.compiled(candidate(), kept)


def _fake(monkeypatch: pytest.MonkeyPatch, run: Callable[[Tensor], object]) -> list[int]:
    calls: list[int] = []

    def package(_program: object, building: Path, *_: object) -> Path:
        calls.append(1)
        (building / "compiled.pt2").write_bytes(b"fake")
        return building / "compiled.pt2"

    monkeypatch.setattr(compiled, "_compiled_package", package)
    monkeypatch.setattr(compiled, "_loaded", lambda _path: run)
    return calls


def test_what_strays_too_far_is_refused_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = candidate(strays=1e-3)
    calls = _fake(monkeypatch, mine.module)
    for _ in range(2):
        with pytest.raises(NotCompiledError, match=r"strays by 1.0e-03 .* 1.0e-05 is allowed"):
            compiled.compiled(mine, Kept(tmp_path / "k"))
    assert calls == [1]


def test_what_is_no_faster_is_refused_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, kept = candidate(must_pay=True), Kept(tmp_path / "k")
    calls = _fake(monkeypatch, mine.module)
    monkeypatch.setattr(compiled, "_cpu_s", lambda _forward: 1.0)
    now = time.time()
    for later_s, num_calls in ((0, 1), (86_000, 1), (87_000, 2)):
        monkeypatch.setattr("featlib.inference.kept.time.time", lambda later_s=later_s: now + later_s)
        with pytest.raises(NotCompiledError, match="no faster"):
            compiled.compiled(mine, kept)
        assert len(calls) == num_calls


def test_what_is_slow_is_made_for_whoever_must_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition of half precision that was begun compiled goes on so."""
    mine, kept = candidate(must_pay=True), Kept(tmp_path / "k")
    calls = _fake(monkeypatch, mine.module)
    monkeypatch.setattr(compiled, "_cpu_s", lambda _forward: 1.0)
    with pytest.raises(NotCompiledError, match="no faster"):
        compiled.compiled(mine, kept)
    for _ in range(2):
        made = compiled.compiled(candidate(must_pay=False), kept)
        torch.testing.assert_close(made(X)[0], mine.module(X)[0], rtol=0, atol=0)
    assert calls == [1, 1]


def _breaks(_x: object) -> Sequence[Tensor]:
    raise RuntimeError("no kernel")


@pytest.mark.parametrize("step", ["compiling", "loading", "running"])
def test_a_failure_is_remembered_so_that_not_every_actor_compiles(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _fake(monkeypatch, _breaks)
    if step == "compiling":
        calls = _counted(monkeypatch, "_compiled_package")
    elif step == "loading":
        _counted(monkeypatch, "_loaded")
    kept, now = Kept(tmp_path / "k"), time.time()
    for later_s, num_calls in ((0, 1), (800, 1), (1000, 2)):
        monkeypatch.setattr("featlib.inference.kept.time.time", lambda later_s=later_s: now + later_s)
        with pytest.raises(NotCompiledError, match="no kernel" if step == "running" else "cannot be had"):
            compiled.compiled(candidate(), kept)
        assert len(calls) == num_calls


def _counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    calls: list[int] = []

    def fails(*_: object) -> None:
        calls.append(1)
        raise NotCompiledError(f"{name} cannot be had")

    monkeypatch.setattr(compiled, name, fails)
    return calls


def test_a_kept_package_that_cannot_be_loaded_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, kept = candidate(), Kept(tmp_path / "k")
    calls = _fake(monkeypatch, mine.module)
    compiled.compiled(mine, kept)
    compiled.compiled(mine, kept)
    assert calls == [1]
    loads: list[Path] = []

    def once_not(package: Path) -> Callable[[Tensor], object]:
        loads.append(package)
        if len(loads) == 1:
            raise NotCompiledError("libgomp has changed")
        return mine.module

    monkeypatch.setattr(compiled, "_loaded", once_not)
    compiled.compiled(mine, kept)
    assert calls == [1, 1]
    assert [package.parent.suffix for package in loads] == ["", ".build"]


def test_nan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(monkeypatch, lambda x: (torch.full((2, 4), float("nan")),))
    with pytest.raises(NotCompiledError, match="strays by nan"):
        compiled.compiled(candidate(), Kept(tmp_path / "k"))


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("raise RuntimeError('out of luck')", r"compiling failed \(RuntimeError: out of luck\)"),
        ("raise SystemExit('torch._inductor.exc.InvalidCxxCompiler: No working C++ compiler')", "install g\\+\\+"),
        ("import os; os.kill(os.getpid(), 9)", r"compiling failed \(ended by SIGKILL\)"),
        (
            "import os, sys; sys.stderr.write('Warning: no Error\\n'); sys.stderr.flush(); os.kill(os.getpid(), 6)",
            r"compiling failed \(ended by SIGABRT; it said last: Warning: no Error\)",
        ),
        ("import os; os.kill(os.getpid(), 40)", r"compiling failed \(ended by signal 40\)"),
        ("raise SystemExit(3)", r"compiling failed \(exit status 3\)"),
    ],
)
def test_a_compiler_that_fails_is_one_line(
    script: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "compiler.py"
    path.write_text(script)
    monkeypatch.setattr(compiled.compiler, "__file__", str(path))
    with pytest.raises(NotCompiledError, match=says):
        compiled.compiled(candidate(), Kept(tmp_path / "k"))


@cache
def model(**settings: str) -> ResolvedModel:
    values = {"network": "resnet18", "weights": "random:0", **settings}
    return replace(resolve(ModelConfig.model_validate(values), OPTIONS), arithmetic="compiled")


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    return features(replace(model(), arithmetic="plain"))[0]


def features(resolved: ResolvedModel) -> tuple[np.ndarray, Engine]:
    engine = Engine([resolved], payload(resolved, OPTIONS))
    (extracted,) = engine.run(PICTURES, ONE_EACH)
    assert not extracted.errors
    return extracted.features, engine


def relative_l2(value: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def _uncompiled(candidate: Candidate) -> CompiledNetwork:
    """All that happens to a network but the compilation itself; what it gives is held against the plain one."""
    with torch.inference_mode():
        figure, allowed = candidate.strays(candidate.module(candidate.example))
    assert figure <= allowed
    if candidate.example.dtype == torch.float32:
        assert allowed == pytest.approx(2.5e-6)  # as README.md promises
    return CompiledNetwork(candidate.module, candidate.example)


@pytest.mark.parametrize(("precision", "least", "most"), [("fp32", 0.0, 1e-5), ("bf16", 1e-4, 2e-2)])
def test_the_engine_runs_what_is_compiled(
    precision: str, least: float, most: float, exact: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "compiled", _uncompiled)
    found, engine = features(model(precision=precision))
    assert engine.notes == ()
    assert engine.batch_size == 4
    assert not [m for m in engine._module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert least < relative_l2(found, exact) < most


def _fails(_candidate: Candidate) -> CompiledNetwork:
    raise NotCompiledError("there is no C++ compiler; install g++")


def test_fp32_falls_back_to_the_plain_network_and_says_so(exact: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "compiled", _fails)
    found, engine = features(model())
    assert engine.notes == ("resnet18: not compiled: there is no C++ compiler; install g++",)
    assert relative_l2(found, exact) < 1e-6


def test_what_strays_further_than_a_quarter_of_the_tolerance_falls_back(
    exact: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = _fake(monkeypatch, _breaks)
    plain_prepared = prepared.prepared

    def off_by(share: float) -> Engine:
        def ready(resolved: ResolvedModel, build: Callable[[], Any], *rest: Any, **settings: bool) -> prepared.Prepared:
            right = build().eval()
            monkeypatch.setattr(compiled, "_loaded", lambda _path: lambda x: [v * (1 + share) for v in right(x)])
            return plain_prepared(resolved, build, *rest, **settings)

        monkeypatch.setattr("featlib.inference.engine.prepared", ready)
        monkeypatch.setattr(compiled, "_cpu_s", lambda forward: 1.0 + (getattr(forward, "__name__", "") == "run"))
        return Engine([model()], payload(model(), OPTIONS))

    strays = off_by(5e-6)
    (note,) = strays.notes
    assert note.startswith("resnet18: not compiled: compiled it strays by 5.0e-06 from the plain network, 2.5e-06 is")
    assert relative_l2(strays.run(PICTURES, ONE_EACH)[0].features, exact) < 1e-6
    shutil.rmtree(tmp_path / "featlib")  # the refusal
    near = off_by(1e-6)
    assert near.notes == ()
    assert isinstance(near._module, CompiledNetwork)
    assert calls == [1, 1]


def test_gpus_run_it_plain_and_that_is_said() -> None:
    """``meta`` stands for any device that is no CPU."""
    resolved = model()
    ready = prepared.prepared(resolved, lambda: cut(small(), ["penultimate"], "fc"), lambda: X, torch.device("meta"))
    assert ready.note == "resnet18: not compiled: it runs on a GPU"
    plain = replace(resolved, arithmetic="plain")
    assert not prepared.prepared(plain, lambda: cut(small(), ["logits"], "fc"), lambda: X, torch.device("meta")).note


def test_what_was_compiled_is_expected_only_as_it_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(prepared, "compiled", lambda c: CompiledNetwork(c.module, c.example))
    mine = model()
    threads = torch.get_num_threads()
    assert not is_probably_kept([mine], threads)
    Engine([mine], payload(mine, OPTIONS))
    assert is_probably_kept([replace(mine, arithmetic="plain")], threads)
    assert is_probably_kept([replace(mine, batch_size=4)], threads), "the number that it had by itself"
    for models, num_threads in (
        ([mine], threads + 1),
        ([replace(mine, batch_size=5)], threads),
        ([replace(mine, layer="logits")], threads),
        ([mine, replace(mine, label="b", layer="logits")], threads),
    ):
        assert not is_probably_kept(models, num_threads)


def test_half_precision_does_not_mix_two_arithmetics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "compiled", _fails)
    half = model(precision="bf16")
    with pytest.raises(NotCompiledError, match="model=resnet18: its partition is of the network compiled in bf16"):
        Engine([half], payload(half, OPTIONS))
    trial = Engine([half], payload(half, OPTIONS), is_trial=True)
    assert trial.notes == ("resnet18: not compiled: there is no C++ compiler; install g++",)


def test_default_batches_of_compiled_networks_are_smaller() -> None:
    assert default_batch_size(model(), "cpu") == 4
    assert default_batch_size(replace(model(), arithmetic="plain"), "cpu") == 8
    assert default_batch_size(model(), "cuda") == 64
