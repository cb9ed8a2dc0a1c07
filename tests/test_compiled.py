"""Networks as machine code: batch norm folded, held against the plain network, and plain wherever that fails."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featlib.config import ModelConfig
from featlib.extractors.layers import cut
from featlib.extractors.resolve import ResolvedModel, resolve
from featlib.extractors.weights import payload
from featlib.inference import Engine, compiled, default_batch_size, prepared
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


def test_what_is_no_faster_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = candidate(must_pay=True)
    _fake(monkeypatch, mine.module)
    monkeypatch.setattr(compiled, "_cpu_s", lambda _forward: 1.0)
    with pytest.raises(NotCompiledError, match="no faster"):
        compiled.compiled(mine, Kept(tmp_path / "k"))


def test_nan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(monkeypatch, lambda x: (torch.full((2, 4), float("nan")),))
    with pytest.raises(NotCompiledError, match="strays by nan"):
        compiled.compiled(candidate(), Kept(tmp_path / "k"))


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("raise RuntimeError('out of luck')", r"compiling failed \(RuntimeError: out of luck\)"),
        ("raise SystemExit('torch._inductor.exc.InvalidCxxCompiler: No working C++ compiler')", "install g\\+\\+"),
        ("import os; os.kill(os.getpid(), 9)", r"compiling failed \(exit status -9\)"),
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
