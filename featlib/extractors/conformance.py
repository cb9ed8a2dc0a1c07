"""The conformance test: what every extractor must hold before its features are worth keeping.

    featlib models my_networks:tiny --check

    from featlib.extractors.conformance import check
    assert all(finding.passed is not False for finding in check("my_networks:tiny"))

featlib's own networks are held to the same function, with other implementations as the plain ones.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from featlib.config import ModelConfig, Precision
from featlib.extractors import layers, plain, probe, registry
from featlib.extractors.build import build
from featlib.extractors.case import HALF_PRECISIONS, Case, PlainForward, make_case, relative_l2
from featlib.extractors.network import Network
from featlib.extractors.resolve import resolve
from featlib.extractors.weights import payload, release_payloads
from featlib.inference import Engine
from featlib.sampling import ClipSampling
from featlib.storage import StoreOptions

BATCH_TOLERANCE = 1e-5
"""Most relative L2 between a clip alone and the same clip in any batch."""
PLAIN_TOLERANCE = 5e-5
"""Most relative L2 between the feature and that of the plain network, in fp32."""
LEAST_DIFFERENCE = 1e-4
"""Least relative L2 between the features of two clips."""
FP16_FLOPS_ON_CPU = 4e9
"""In fp16 a CPU takes 10 times as long as in fp32, 40 times for 3D convolutions; larger networks are left out."""

_OTHER_CLASSES = 5


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        passed: None when the check was left out; the message says why.
        figure: What was measured, where that is a number: a relative L2.
    """

    check: str
    passed: bool | None
    figure: float | None
    message: str


def check(
    network: Network | str,
    *,
    weights: str = "random:0",
    clip_sampling: str | None = None,
    plain_forward: PlainForward | None = None,
) -> tuple[Finding, ...]:
    """Holds a network to shape, dtype, eval mode, determinism, batch invariance, precisions, weights and values.

    Args:
        network: A name that ``--model`` takes, or the network itself, registered or not.
        weights: As ``--weights``. Random ones get batch norm statistics of the test's own pictures: without them the
            values of deep networks fade to nothing.
        clip_sampling: As ``--clip-sampling``, for a clip that is shorter than the network's own.
        plain_forward: An implementation to agree with: from uint8 clips (N, T, H, W, 3) to features (N, ...). By
            default the network's own module run by torch alone, its input prepared by hand.

    Raises:
        ConfigError: The network or the weights cannot be had, so there is nothing to check.
    """
    found = registry.network(network) if isinstance(network, str) else network
    with registry.lent(found), TemporaryDirectory(prefix="featlib-check-") as folder:
        try:
            case = make_case(found, weights, clip_sampling, Path(folder), plain_forward)
            built = cache(partial(_built, case))
            checks: list[tuple[str, Callable[[Case], Finding]]] = [
                ("eval mode", lambda _: _eval_mode(built())),
                ("dtype", lambda _: _dtype(built())),
                ("shape", _shape),
                ("determinism", _determinism),
                ("batch invariance", _batch_invariance),
                ("response", _response),
                ("agreement", _agreement),
                *((f"precision {p}", partial(_precision, precision=p)) for p in HALF_PRECISIONS),
                ("weights .pth", partial(_weights_pth, folder=Path(folder))),
                ("weights .safetensors", partial(_weights_safetensors, folder=Path(folder))),
            ]
            return tuple(_finding(name, function, case) for name, function in checks)
        finally:
            release_payloads()


def _finding(name: str, function: Callable[[Case], Finding], case: Case) -> Finding:
    try:
        return replace(function(case), check=name)
    except Exception as error:  # noqa: BLE001 - whatever a network raises is what was found
        return Finding(name, False, None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _judged(passed: bool, good: str, bad: str, figure: float | None = None) -> Finding:
    return Finding("", passed, figure, good if passed else bad)


@dataclass(frozen=True)
class _Built:
    """A network as it is built, and what one forward pass of it showed; names are of modules, weights and buffers.

    Args:
        of_batch: Norms that take their statistics from the batch.
        changed: By the forward pass.
        dtypes: Of weights, of what the network gives and of what its last layer reads, before the engine makes it
            float32.
    """

    training: list[str]
    learning: list[str]
    of_batch: list[str]
    changed: list[str]
    dtypes: dict[str, torch.dtype]


def _built(case: Case) -> _Built:
    module = build(case.resolved, case.payload)
    inner = module.network
    seen: dict[str, torch.dtype] = {}

    def note(name: str, values: object) -> None:
        tensors = values.values() if isinstance(values, dict) else (values,)
        seen.update((name, t.dtype) for t in tensors if isinstance(t, Tensor))

    inner.register_forward_hook(lambda _module, _args, out: note("the output", out))
    if case.resolved.layer in layers.NAMED_LAYERS:
        last = inner.get_submodule(case.resolved.last_layer)
        last.register_forward_pre_hook(lambda _module, args: note("the last layer's input", args[0]))
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.inference_mode():
        module(plain.prepared(case.resolved.input, case.clips[:1]))
    return _Built(
        training=[name for name, m in module.named_modules() if m.training],
        learning=[name for name, p in module.named_parameters() if p.requires_grad],
        of_batch=[n for n, m in module.named_modules() if isinstance(m, norms) and m.running_mean is None],
        changed=[name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])],
        dtypes=seen | {name: t.dtype for name, t in inner.state_dict().items() if t.is_floating_point()},
    )


def _eval_mode(built: _Built) -> Finding:
    wrong = {
        "still in train mode": built.training,
        "would be trained": built.learning,
        "takes its statistics from the batch": built.of_batch,
        "changed by a forward pass": built.changed,
    }
    bad = "; ".join(f"{', '.join(names[:3])} {what}" for what, names in wrong.items() if names)
    return _judged(not bad, "nothing trains, and a forward pass changes nothing", bad)


def _dtype(built: _Built) -> Finding:
    other = [f"{name} is {dtype}" for name, dtype in built.dtypes.items() if dtype != torch.float32]
    return _judged(not other, "float32 throughout", f"not float32: {', '.join(other[:3])}")


def _shape(case: Case) -> Finding:
    shape, features = case.resolved.feature_shape, case.features(0, 1)
    found = [f"{len(features)} rows of {features.shape[1]} values for 2 clips"]
    good = features.dtype == np.float32 and features.shape == (2, int(np.prod(shape)))
    if case.plain_forward is not None:
        expected = case.plain_feature().shape
        good = good and expected == shape
        found.append(f"{expected} by the plain implementation")
    return _judged(good, f"{shape}", f"{shape} was foretold, but there are {' and '.join(found)}")


def _determinism(case: Case) -> Finding:
    first, second = case.features(1), case.fresh_features(1)
    figure = relative_l2(second, first)
    same = bool(np.array_equal(first, second))
    return _judged(same, "the same bits twice", "the same batch gave other values the second time", figure)


def _batch_invariance(case: Case) -> Finding:
    """A clip alone (the engine fills its batch up with itself), behind another one and before it."""
    alone = case.features(1)[0]
    figure = max(relative_l2(case.features(0, 1)[1], alone), relative_l2(case.features(1, 0)[0], alone))
    bad = "a clip's feature depends on its neighbours in the batch"
    return _judged(figure < BATCH_TOLERANCE, "alone and in a batch the same", bad, figure)


def _response(case: Case) -> Finding:
    features = case.features(0, 1)
    figure = relative_l2(features[0], features[1])
    return _judged(
        figure > LEAST_DIFFERENCE, "two clips, two features", "two different clips have the same feature", figure
    )


def _agreement(case: Case) -> Finding:
    if case.plain_forward is None:
        layer = case.resolved.layer
        return Finding("", None, None, f"left out: layer {layer} is no module whose output torch alone could give")
    figure = relative_l2(case.features(1)[0], case.plain_feature().ravel())
    return _judged(figure < PLAIN_TOLERANCE, "equals the plain forward", "not what a plain forward gives", figure)


def _precision(case: Case, *, precision: Precision) -> Finding:
    """Half precision is used, and strays from fp32 no further than twice as far as the plain network does.

    A fixed bound would not do: random weights amplify rounding, by 0.26 in MNASNet and 0.005 in Swin (bf16).
    """
    if case.plain_forward is None:
        return Finding("", None, None, "left out: there is no plain forward to compare with")
    if precision == "fp16" and registry.describe(case.network.name).flops > FP16_FLOPS_ON_CPU:
        return Finding("", None, None, "left out: fp16 of so large a network takes minutes on a CPU")
    exact = case.plain_feature().ravel()
    engine = Engine([replace(case.resolved, precision=precision)], case.payload, batch_size=1)
    (extracted,) = engine.run(case.frames, case.frame_idx[1:], case.flow)
    features = extracted.features
    if extracted.errors:
        return Finding("", False, None, extracted.errors[0])
    allowed = 2 * relative_l2(case.plain_feature(precision).ravel(), exact)
    figure = relative_l2(features[0], exact)
    good = f"within {allowed:.2g} of fp32, twice what the plain network strays"
    bad = f"the same as fp32: {precision} is not used" if figure == 0 else f"further from fp32 than {allowed:.2g}"
    return _judged(features.dtype == np.float32 and 0 < figure < allowed, good, bad, figure)


def _weights_pth(case: Case, *, folder: Path) -> Finding:
    """In wrappers as training scripts save them, and for another number of classes where the network can have one."""
    state, classes = safetensors.torch.load(case.payload), case.resolved.num_classes
    if case.network.takes_num_classes:
        classes = _OTHER_CLASSES if classes != _OTHER_CLASSES else _OTHER_CLASSES + 1
        state = _for_classes(case, state, classes)
    path = folder / "w.pth"
    torch.save({"epoch": 3, "state_dict": OrderedDict((f"module.{k}", v) for k, v in state.items())}, path)
    return _read_back(case, path, state, classes)


def _weights_safetensors(case: Case, *, folder: Path) -> Finding:
    state, path = safetensors.torch.load(case.payload), folder / "w.safetensors"
    safetensors.torch.save_file({f"model.{k}": v for k, v in state.items()}, path)
    return _read_back(case, path, state, case.resolved.num_classes)


def _for_classes(case: Case, state: dict[str, Tensor], classes: int) -> dict[str, Tensor]:
    """``state`` as a network of so many classes has it: what has another shape there begins with the same values."""
    settings = (*(s for s in case.resolved.settings if s[0] != "num_classes"), ("num_classes", classes))
    shapes = {k: v.shape for k, v in probe.skeleton(case.network, settings).state_dict().items()}
    return {
        k: v if v.shape == shapes[k] else v.reshape(-1)[torch.arange(shapes[k].numel()) % v.numel()].reshape(shapes[k])
        for k, v in state.items()
    }


def _read_back(case: Case, path: Path, state: dict[str, Tensor], classes: int) -> Finding:
    clip = f"frames={case.resolved.frames}" if isinstance(case.resolved.sampling, ClipSampling) else None
    config = {"network": case.network.name, "label": "checked", "weights": str(path), "clip_sampling": clip}
    if case.flow is not None:
        config["flow"] = "farneback"
    resolved = resolve(ModelConfig.model_validate(config), StoreOptions())
    path.unlink()
    read = safetensors.torch.load(payload(resolved, StoreOptions()))
    lost = sorted(read.keys() ^ state.keys()) or sorted(k for k in state if not torch.equal(read[k], state[k]))
    good = resolved.num_classes == classes and not lost
    return _judged(
        good, f"{len(state)} tensors came back, {classes} classes", f"did not come back: {', '.join(lost[:3])}"
    )
