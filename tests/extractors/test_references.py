"""``--model module:object``: what it takes, and the one line that says why it does not take the rest."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import featlib
from featlib.config import ModelConfig, default_label
from featlib.errors import ConfigError
from featlib.extractors import registry
from featlib.extractors.build import build
from featlib.extractors.resolve import resolve
from featlib.extractors.weights import payload
from featlib.sampling import ClipSampling, FrameSampling
from featlib.storage import StoreOptions
from tests.extractors.tiny_networks import CLIPS, FRAMES, Tiny, TinyClips

NETS = "tests.extractors.tiny_networks"
OPTIONS = StoreOptions()


def test_a_network_and_a_function_that_gives_one() -> None:
    found = registry.network(f"{NETS}:tiny")
    assert found.name == f"{NETS}:tiny"
    assert found.constructor is Tiny
    assert registry.network(f"{NETS}:tiny") is found
    assert registry.network(f"{__name__}:made").constructor is TinyClips
    assert registry.network(f"{__name__}:Holder.inner").constructor is Tiny
    assert registry.describe(f"{NETS}:tiny").feature_shape == (16,)


def made() -> featlib.Network:
    return featlib.own_network("made", TinyClips, CLIPS)


class Holder:
    inner = featlib.own_network("inner", Tiny, FRAMES)


def takes_one(depth: int) -> featlib.Network:
    raise AssertionError(depth)


def raises() -> featlib.Network:
    raise KeyError("no such\nfile")


def unhashable() -> featlib.Network:
    reads = featlib.InputSpec("frame", featlib.PixelSpec((40,), (32, 32)), mean=[0.5] * 3, std=(0.5,) * 3)
    return featlib.own_network("listed", Tiny, reads)


number = 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{NETS}:tinny", "tiny_networks has no 'tinny'; its networks are tiny, tiny_clips"),
        (f"{__name__}:Holder.outer", "has no 'Holder.outer'; it must be a featlib.Network"),
        (f"{__name__}:number", "is or gives a int; it must be a featlib.Network"),
        (f"{NETS}:Tiny", "is or gives a Tiny; it must be a featlib.Network"),
        (f"{__name__}:takes_one", "calling it raised TypeError: takes_one() missing 1 required"),
        (f"{__name__}:raises", r"calling it raised KeyError: 'no such\nfile' at test_references.py, line "),
        (f"{__name__}:unhashable", "unhashable type: 'list'; write tuples instead of lists"),
        ("no_such_module:tiny", "there is no module 'no_such_module' in "),
        ("tests.no_such_module:tiny", "on a Ray cluster every node needs it"),
        (f"{NETS}:", "write module:object"),
        (":tiny", "write module:object"),
        ("..:tiny", "cannot be imported (TypeError"),
    ],
)
def test_what_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.network(name)
    assert str(caught.value).startswith(f"--model {name}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_dependency\n", "ModuleNotFoundError: No module named 'no_such_dependency' at {}.py, line 1"),
        ("\nx = 1 / 0\n", "ZeroDivisionError: division by zero at {}.py, line 2"),
        ("def f(:\n", "SyntaxError: "),
        ("raise SystemExit(4)\n", "SystemExit: 4"),
    ],
)
def test_an_error_inside_the_module_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    name = f"broken_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as caught:
        registry.network(f"{name}:tiny")
    assert str(caught.value).startswith(f"--model {name}:tiny: {name} cannot be imported ({message.format(name)}")
    assert "\n" not in str(caught.value)


def test_the_current_folder_counts_for_the_console_script_too(tmp_path: Path) -> None:
    """A script of the bin folder does not have it on its path, ``python -m`` has."""
    (tmp_path / "here.py").write_text(
        "import featlib\nfrom torch import nn\n"
        "pixels = featlib.PixelSpec((40,), (32, 32))\n"
        "reads = featlib.InputSpec('frame', pixels, (0.5,) * 3, (0.25,) * 3)\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))\n"
        "net = featlib.own_network('net', build, reads)\n"
    )
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "featlib"
    script.write_text("from featlib.cli import main\nmain()\n")
    done = subprocess.run(
        [sys.executable, str(script), "models", "here:net"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "here:net (net, from user)" in done.stdout


def test_labels() -> None:
    assert ModelConfig.model_validate({"network": f"{NETS}:tiny"}).label == "tiny"
    assert default_label("timm:resnet18.a1_in1k") == "resnet18.a1_in1k"
    assert default_label("nets:_Holder.a b") == "Holder.a_b"
    assert default_label("resnet18") == "resnet18"


def test_own_network_fills_in_the_rest() -> None:
    of_frames, of_clips = featlib.own_network("a", Tiny, FRAMES), featlib.own_network("b", TinyClips, CLIPS)
    assert (of_frames.kind, of_frames.sampling) == ("frame", FrameSampling.parse("fps:1"))
    assert (of_clips.kind, of_clips.sampling) == ("clip", ClipSampling(16))
    assert of_frames.takes_num_classes
    assert not of_clips.takes_num_classes
    assert of_frames.default_pretrained.input == FRAMES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a b"}, "own_network: name: 'a b' must be a letter"),
        ({"input": featlib.InputSpec("frame", featlib.PixelSpec((40,), None), (0.5,) * 3, (0.5,) * 3)}, "has no crop"),
        ({"sampling": ClipSampling(16)}, "ClipSampling is not for a network of frames; use FrameSampling"),
        ({"input": CLIPS, "sampling": FrameSampling("all")}, "FrameSampling is not for a network of clips"),
    ],
)
def test_own_network_refuses_what_does_not_go_together(settings: dict[str, object], message: str) -> None:
    values = {"name": "a", "constructor": Tiny, "input": FRAMES, **settings}
    with pytest.raises(ConfigError, match=message):
        featlib.own_network(**values)  # type: ignore[arg-type]


def test_weights_of_ones_own_network(tmp_path: Path) -> None:
    """A file for other classes is read where the constructor can be told, and refused where it cannot."""
    torch.save(Tiny(4).state_dict(), tmp_path / "four.pth")
    config = ModelConfig.model_validate({"network": f"{NETS}:tiny", "weights": str(tmp_path / "four.pth")})
    resolved = resolve(config, OPTIONS)
    assert (resolved.num_classes, resolved.settings) == (4, (("num_classes", 4),))
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    network = Tiny(4).eval()
    network.load_state_dict(torch.load(tmp_path / "four.pth"))
    expected = network.second(network.norm(network.first(x)).relu()).relu().mean(dim=(2, 3))
    assert torch.allclose(build(resolved, payload(resolved, OPTIONS))(x)[0], expected, atol=1e-6)

    clips = TinyClips()
    clips.head = torch.nn.Linear(8, 5)
    torch.save(clips.state_dict(), tmp_path / "five.pth")
    config = ModelConfig.model_validate({"network": f"{NETS}:tiny_clips", "weights": str(tmp_path / "five.pth")})
    with pytest.raises(ConfigError, match=r"head\.weight is \(5, 8\), not \(3, 8\)"):
        resolve(config, OPTIONS)


def test_default_weights_of_a_network_without_published_ones() -> None:
    with pytest.raises(ConfigError, match=r"weights tiny\.OWN are not to be had by name.*--weights random:SEED"):
        resolve(ModelConfig.model_validate({"network": f"{NETS}:tiny"}), OPTIONS)
