"""Networks of installed packages, found by the metadata that an installation leaves; a broken one breaks itself."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from featlib.errors import ConfigError
from featlib.extractors import listing, registry

_NETS = "from tests.extractors.tiny_networks import tiny, tiny_clips\nfrom dataclasses import replace\n"

Install = Callable[[str, str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package: its module's text and its lines of entry points."""
    monkeypatch.syspath_prepend(tmp_path)
    registry._plugins.cache_clear()

    def _install(package: str, text: str, entries: str) -> None:
        (tmp_path / f"{package}.py").write_text(text)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[featlib.extractors]\n{entries}\n")

    yield _install
    registry._plugins.cache_clear()


def test_a_network_and_a_family(install: Install) -> None:
    install("plug_one", f"{_NETS}single = replace(tiny, name='single')", "single = plug_one:single")
    install("plug_family", f"{_NETS}def both(): return [tiny, tiny_clips]", "all = plug_family:both")
    assert {"single", "tiny", "tiny_clips", "resnet18"} <= set(registry.names())
    assert registry.names() == sorted(registry.names())
    assert registry.network("single").source == "plug_one"
    assert registry.describe("tiny_clips").source == "plug_family"
    assert registry.describe("tiny_clips").feature_shape == (8,)
    assert registry.problems() == []
    with pytest.raises(ConfigError, match="did you mean tiny_clips"):
        registry.network("tiny_clip")


BROKEN = {
    "raises": ("raise OSError('no disk')", "broken = {0}:net", "(OSError: no disk)"),
    "exits": ("raise SystemExit(3)", "broken = {0}:net", "(SystemExit: 3)"),
    "lacks": ("x = 1", "broken = {0}:net", "has no attribute 'net')"),
    "gives": ("def net(): return [3]", "broken = {0}:net", "gave a int, not a Network)"),
    "is": ("net = 3", "broken = {0}:net", "is a int, not a Network or a function that gives them)"),
    "names": (f"{_NETS}net = replace(tiny, name='a:b')", "broken = {0}:net", "(ValueError: 'a:b' must be a letter"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plug_in_breaks_only_its_own_name(install: Install, kind: str) -> None:
    text, entries, message = BROKEN[kind]
    package = f"plug_that_{kind}"
    install(package, text, entries.format(package))
    install("plug_good", f"{_NETS}net = tiny", "tiny = plug_good:net")
    assert registry.network("tiny").source == "plug_good"
    assert registry.network("resnet18").source == "torchvision"
    assert "broken" not in registry.names()
    with pytest.raises(ConfigError) as caught:
        registry.network("broken")
    assert f"--model broken: the plug-in 'broken' of {package} cannot be used " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(registry.problems()) == 1
    with pytest.raises(ConfigError, match=rf"--model zzz: no such network; .*; besides, the plug-in .* of {package}"):
        registry.network("zzz")


def test_a_name_that_featlib_has_is_not_given_away(install: Install) -> None:
    install("plug_greedy", f"{_NETS}net = replace(tiny, name='resnet18')", "resnet18 = plug_greedy:net")
    assert registry.network("resnet18").source == "torchvision"
    expected = "extractor 'resnet18' is registered twice, by torchvision and plug_greedy; names must be unique"
    assert registry.problems() == [expected]


def test_a_name_that_two_plug_ins_claim_is_neithers(install: Install) -> None:
    for package in ("plug_a", "plug_b"):
        text = f"{_NETS}def nets(): return [replace(tiny, name='same'), replace(tiny, name='of_{package}')]"
        install(package, text, f"nets = {package}:nets")
    assert registry.network("of_plug_a").source == "plug_a"
    assert registry.network("of_plug_b").source == "plug_b"
    assert "same" not in registry.names()
    with pytest.raises(ConfigError, match="'same' is registered twice, by plug_a and plug_b; names must be unique"):
        registry.network("same")


def test_own_names_load_no_plug_in(install: Install, tmp_path: Path) -> None:
    loaded = tmp_path / "loaded"
    install("plug_traced", f"{_NETS}open({str(loaded)!r}, 'w').close()\nnet = tiny", "tiny = plug_traced:net")
    registry.network("resnet18")
    assert not loaded.exists()
    registry.network("tiny")
    assert loaded.exists()


def test_the_list_goes_on_past_a_plug_in_that_cannot_be_built(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        f"{_NETS}def bad(): raise KeyError('width')\nnets = lambda: [tiny, replace(tiny, name='bad', constructor=bad)]"
    )
    install("plug_half", text, "nets = plug_half:nets")
    monkeypatch.setattr(listing, "names", lambda: [n for n in registry.names() if n in ("tiny", "bad", "alexnet")])
    described, wrong = listing.all_described()
    assert [d.name for d in described] == ["alexnet", "tiny"]
    assert wrong == ["bad: its constructor raised KeyError: 'width'"]
