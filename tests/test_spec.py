"""Samplings and pixel specs: what is read, what it prints, what is refused."""

import pickle
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featlib.sampling import ClipSampling, FrameSampling, RegionChoice, clip_sampling, parse_clip_keys
from featlib.spec import PixelSpec, Want

OWN = ClipSampling(16)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("all", "all"),
        ("keyframes", "keyframes"),
        ("every:8", "every:8"),
        (" fps:1 ", "fps:1"),
        ("fps:1.0", "fps:1"),
        ("fps:0.5", "fps:0.5"),
        ("fps:30000/1001", "fps:30000/1001"),
        ("uniform:16", "uniform:16"),
        ("random:3", "random:3"),
    ],
)
def test_frame_samplings(text: str, shown: str) -> None:
    assert str(FrameSampling.parse(text)) == shown
    assert FrameSampling.parse(shown) == FrameSampling.parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "some", "every", "every:0", "every:-1", "every:1.5", "fps:", "fps:x", "fps:1/0", "fps:nan", "fps:inf",
     "uniform:2.5", "all:3", "keyframes:1", "every:2:3"],
)  # fmt: skip
def test_wrong_frame_samplings(text: str) -> None:
    with pytest.raises(ValueError, match="frame sampling"):
        FrameSampling.parse(text)


@given(st.fractions(min_value=Fraction(1, 10_000), max_value=10_000))
def test_rates_print_what_they_are(rate: Fraction) -> None:
    sampling = FrameSampling("fps", rate)
    assert FrameSampling.parse(str(sampling)) == sampling


def test_what_is_left_out_is_the_networks_own() -> None:
    own = ClipSampling(16, 2, 8, "pad", Fraction(15))
    assert clip_sampling("", own) == own
    assert clip_sampling("tail=shift", own) == ClipSampling(16, 2, 8, "shift", Fraction(15))
    assert clip_sampling("frames=8,stride=4", OWN) == ClipSampling(8, 4, 32)
    assert clip_sampling("frames=8", own).hop == 8, "clips that overlap keep their hop"


@pytest.mark.parametrize(
    "text",
    ["frames=0", "frames=-1", "frames=1.5", "frames=x", "hop=0", "stride=0", "tail=keep", "fps=0", "fps=x", "frames",
     "frames=", "size=3", "frames=8,frames=8", "=3"],
)  # fmt: skip
def test_wrong_clip_samplings(text: str) -> None:
    with pytest.raises(ValueError, match="clip sampling"):
        clip_sampling(text, OWN)


def test_clip_keys() -> None:
    assert parse_clip_keys(" frames=8 , tail=pad,") == {"frames": "8", "tail": "pad"}


@given(
    st.builds(
        ClipSampling,
        st.integers(1, 64),
        st.integers(1, 9),
        st.integers(1, 99),
        st.sampled_from(["drop", "pad", "shift"]),
        st.none() | st.fractions(min_value=Fraction(1, 9), max_value=60),
    )
)
def test_clip_samplings_print_what_they_are(sampling: ClipSampling) -> None:
    assert clip_sampling(str(sampling), OWN) == sampling


def test_hop_and_span() -> None:
    assert ClipSampling(4, 3).hop == 12
    assert ClipSampling(4, 3).span == 10
    with pytest.raises(ValueError, match=r"frames \(0\) must be at least 1"):
        ClipSampling(0)


def test_pixel_keys_tell_specs_apart() -> None:
    specs = [
        PixelSpec((256,), (224, 224)),
        PixelSpec((256,), None),
        PixelSpec((256, 256), (224, 224)),
        PixelSpec((256,), (224, 225)),
        PixelSpec((), (224, 224)),
        PixelSpec((256,), (224, 224), "bicubic"),
        PixelSpec((256,), (224, 224), antialias=False),
    ]
    assert len({s.key for s in specs}) == len(specs)
    assert all(s.key.replace("_", "").isalnum() for s in specs)


def test_specs_cross_process_borders() -> None:
    want = Want("m", ClipSampling(16, fps=Fraction(15)), PixelSpec((128, 171), (112, 112)))
    assert pickle.loads(pickle.dumps(want)) == want
    assert want.kind == "clip"
    assert Want("m", FrameSampling("all"), want.pixels).kind == "frame"


@pytest.mark.parametrize(("text", "choice"), [("top:100", ("top", 100)), (" fixed:36 ", ("fixed", 36))])
def test_region_choices(text: str, choice: tuple[str, int]) -> None:
    parsed = RegionChoice.parse(text)
    assert (parsed.policy, parsed.count) == choice
    assert str(parsed) == text.strip()


@pytest.mark.parametrize("text", ["", "all", "top", "top:", "top:0", "top:-3", "fixed:1.5", "fixed:x", "best:10", "36"])
def test_wrong_region_choices(text: str) -> None:
    with pytest.raises(ValueError, match="regions") as refusal:
        RegionChoice.parse(text)
    assert "\n" not in str(refusal.value)
