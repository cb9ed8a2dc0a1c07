"""Still images of every kind that is opened."""

import io
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featlib.media.limits import Limits
from featlib.spec import Clip, Decoded, PixelSpec, Segment
from tests.media.conftest import WHOLE, clips, decode, want

COLOURS = np.array(
    [[[220, 30, 30], [30, 200, 40], [40, 50, 220]], [[0, 0, 0], [255, 255, 255], [9, 99, 199]]], np.uint8
)


def _picture(mode: str = "RGB", scale: int = 8) -> Image.Image:
    return Image.fromarray(COLOURS.repeat(scale, axis=0).repeat(scale, axis=1)).convert(mode)


def _pixels(result: Decoded) -> np.ndarray:
    assert result.status == "ok", result.error_message
    return result.frames[WHOLE.key][0]


@pytest.mark.parametrize("format_name", ["PNG", "BMP", "TIFF", "GIF"])
def test_lossless_formats_give_the_pixels_back(tmp_path: Path, format_name: str) -> None:
    path = tmp_path / "picture.dat"  # told by its content, whatever it is called
    _picture().save(path, format_name)
    assert np.array_equal(_pixels(decode(path)), np.asarray(_picture()))


@pytest.mark.parametrize("format_name", ["JPEG", "WEBP"])
def test_lossy_formats_give_what_pillow_gives(tmp_path: Path, format_name: str) -> None:
    path = tmp_path / "picture.mp4"
    _picture().save(path, format_name)
    assert np.array_equal(_pixels(decode(path)), np.asarray(Image.open(path).convert("RGB")))


def test_an_image_is_one_clip_of_one_frame_at_zero(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    _picture().save(path)
    result = decode(path, want("uniform:8"), want("fps:1", PixelSpec((10,), (8, 8)), "b"), n=0)
    assert result.segment == Segment(0, 1)
    assert result.clips == {label: (Clip(0, 0.0, None, (0.0,), 0, (0,)),) for label in ("m", "b")}
    assert {key: array.shape for key, array in result.frames.items()} == {
        WHOLE.key: (1, 16, 24, 3),
        "r10_c8x8_bilinear_aa": (1, 8, 8, 3),
    }
    assert (result.facts.height, result.facts.width, result.facts.duration_s) == (16, 24, None)


def test_a_clip_model_skips_an_image(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    _picture().save(path)
    both = decode(path, want("all"), want(clips(16), label="c"))
    assert (both.status, both.skipped_labels, list(both.clips)) == ("ok", ("c",), ["m"])
    alone = decode(path, want(clips(16), label="c"))
    assert (alone.status, alone.error_class) == ("skipped", "image_under_clip_model")
    assert (alone.skipped_labels, alone.clips, alone.frames) == (("c",), {}, {})


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    """Each stored picture is the upright one put through the inverse of what its tag says."""
    undo: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    upright = np.asarray(_picture())
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(np.ascontiguousarray(undo[orientation](upright))).save(path, exif=exif)
    assert np.array_equal(_pixels(decode(path)), upright)


def test_a_picture_with_broken_exif_is_a_picture(tmp_path: Path) -> None:
    """Nobody knows how it is turned; its pixels are sound."""
    path = tmp_path / "a.jpg"
    _picture(scale=16).save(path, quality=95, dpi=(72, 72), exif=b"Exif\0\0rubbish!")
    assert np.array_equal(_pixels(decode(path)), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_a_heif_photograph_is_refused_in_words(tmp_path: Path, videos: dict[str, Path], brand: bytes) -> None:
    """FFmpeg would give its first tile. Here it is a sound video under the brand of one."""
    data = videos["hevc"].read_bytes()
    assert data[4:8] == b"ftyp"
    (tmp_path / "a.heic").write_bytes(data[:8] + brand + data[12:])
    result = decode(tmp_path / "a.heic")
    assert (result.status, result.error_class) == ("failed", "unsupported_codec")
    assert "HEIF" in str(result.error_message)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_other_modes_become_rgb_as_pillow_converts_them(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    image = _picture("RGBA" if mode in ("LA", "RGBA") else "RGB").convert(mode)
    if "A" in mode:
        image.putalpha(40)
    image.save(path)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(_pixels(decode(path)), expected)


def test_transparent_palette_colours_keep_their_colour(tmp_path: Path) -> None:
    image = _picture("P")
    path = tmp_path / "a.png"
    image.save(path, transparency=image.getpixel((0, 0)))
    assert np.array_equal(_pixels(decode(path)), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    _picture("CMYK").save(path, quality=100, subsampling=0)
    assert np.abs(_pixels(decode(path)).astype(int) - np.asarray(_picture())).mean() < 12


def test_sixteen_bit_grey_keeps_its_upper_bits(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 32 * 16).astype(np.uint16).reshape(16, 32)
    path = tmp_path / "a.png"
    Image.fromarray(values).save(path)
    out = _pixels(decode(path))
    assert np.array_equal(out[:, :, 0], values >> 8)
    assert np.array_equal(out[:, :, 0], out[:, :, 2])


def test_floating_point_tiff_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    Image.fromarray(np.ones((4, 4), np.float32)).save(path)
    result = decode(path)
    assert (result.status, result.error_class) == ("failed", "unsupported_codec")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (30_000, 30_000)).save(path)
    result = decode(path)
    assert (result.status, result.error_class) == ("failed", "too_large")
    small = decode(path, limits=Limits(max_pixels=100))
    assert small.error_class == "too_large"


@pytest.mark.parametrize("kind", ["uniform:2", "clips"])
@pytest.mark.parametrize("side", [9_999, 65_535])
def test_a_gif_that_claims_too_many_pixels_is_refused(tmp_path: Path, side: int, kind: str) -> None:
    """It is looked into before anybody knows whether it is a picture or a video."""
    path = tmp_path / "a.gif"
    pages = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime")]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    data = path.read_bytes()
    path.write_bytes(data[:6] + struct.pack("<HH", side, side) + data[10:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = decode(path, want(clips(2) if kind == "clips" else kind))
    assert (result.status, result.error_class) == ("failed", "too_large")


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_cut_image_fails(tmp_path: Path, format_name: str, kept: float) -> None:
    data = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(data, format_name)
    path = tmp_path / "a.jpg"
    path.write_bytes(data.getvalue()[: int(len(data.getvalue()) * kept)])
    result = decode(path)
    assert result.status == "failed"
    assert result.error_class in ("truncated", "corrupt")


def test_a_png_of_rubbish_fails_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(200)))
    result = decode(path)
    assert (result.status, result.error_class) == ("failed", "corrupt")
    assert result.error_message is not None
    assert "\n" not in result.error_message


def test_an_animated_gif_is_a_video(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / "a.gif"
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=100)
    result = decode(path)
    assert [clip.start_s for clip in result.clips["m"]] == [0.0, 0.1, 0.2]
    assert result.frames[WHOLE.key][:, 5, 5].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_a_range_beyond_zero_holds_no_image(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    _picture().save(path)
    assert decode(path, start_s=0.0, end_s=5.0).status == "ok"
    assert decode(path, start_s=1.0).error_class == "empty_range"
