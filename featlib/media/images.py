"""Still images: told by their first bytes, opened with Pillow, upright RGB out."""

import struct
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from featlib.errors import MediaError
from featlib.media.open import check_pixels
from featlib.media.source import Source, read_whole

MAX_FILE_BYTES = 512 << 20
HEAD_BYTES = 32
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_BMP_HEADER_BYTES = (12, 40, 52, 56, 64, 108, 124)
# fmt: off
_PILLOW_ERRORS = (
    UnidentifiedImageError, OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, OverflowError,
    struct.error,
)
# fmt: on
_ORIENTATION = 0x0112  # Exif 3.0 section 4.6.5.1
_UPRIGHT_BY = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def is_image(source: Source, progress: Callable[[], None] = lambda: None) -> bool:
    """Whether the content is a still image; an animated GIF is a video, and is read whole to tell.

    Raises:
        MediaError: ``too_large``: of a GIF that Pillow does not open for its size.
    """
    head = source.head(HEAD_BYTES)
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return not _is_animated(source, progress)
    return (
        head[:3] == b"\xff\xd8\xff"
        or head[:8] == b"\x89PNG\r\n\x1a\n"
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or head[:4] in (b"II*\x00", b"MM\x00*")
        or (head[:2] == b"BM" and len(head) > 18 and int.from_bytes(head[14:18], "little") in _BMP_HEADER_BYTES)
    )


def refuse_heif(source: Source) -> None:
    """FFmpeg takes the tiles of a HEIF photograph for videos, the first of them for the picture.

    Raises:
        MediaError: ``unsupported_codec``.
    """
    head = source.head(12)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        raise MediaError("unsupported_codec", "a HEIF picture; convert it to JPEG or PNG first")


def read_image(source: Source, max_pixels: int, progress: Callable[[], None] = lambda: None) -> npt.NDArray[np.uint8]:
    """(height, width, 3) RGB, turned as its EXIF says.

    Colour is what Pillow's ``convert("RGB")`` gives, which torchvision's image folders use too: transparency is
    dropped, not blended; CMYK is converted without a colour profile. 16-bit grey keeps its upper 8 bits. Of an
    animated WebP or PNG, or a TIFF with several pages, it is the first picture.

    Raises:
        MediaError: ``too_large``, ``truncated``, ``corrupt`` or ``unsupported_codec``.
    """
    if source.size is not None and source.size > MAX_FILE_BYTES:
        raise MediaError("too_large", f"an image file of {source.size} bytes; the limit is {MAX_FILE_BYTES}")
    source.file.seek(0)
    data = read_whole(source.file, MAX_FILE_BYTES, progress)
    given = data.getbuffer().nbytes
    if source.size is not None and given < source.size:
        raise MediaError("truncated", f"the store gave {given} of {source.size} bytes", retryable=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # max_pixels is the rule here, and odd metadata is no outcome
            with Image.open(data, formats=_FORMATS) as image:
                check_pixels(image.width, image.height, max_pixels)
                image.load()
                return _rgb(_upright(image))
    except Image.DecompressionBombError as error:
        raise _too_large(error) from error
    except _PILLOW_ERRORS as error:
        raise _image_error(error) from error


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says, where that can be read; Pillow's own way writes the EXIF anew and stumbles over more."""
    try:
        way = _UPRIGHT_BY.get(image.getexif().get(_ORIENTATION, 1))
    except _PILLOW_ERRORS:
        return image
    return image if way is None else image.transpose(way)


def _rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode == "F":
        raise MediaError("unsupported_codec", "the image holds floating point values; convert it to 8 bits first")
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = _upper_bits(np.asarray(image))
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"))


def _upper_bits(grey: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    values = grey.astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 0xFFFF):
        raise MediaError("unsupported_codec", "the image holds values beyond 16 bits; convert it to 8 bits first")
    return (values >> 8).astype(np.uint8)


def _is_animated(source: Source, progress: Callable[[], None]) -> bool:
    source.file.seek(0)
    data = read_whole(source.file, MAX_FILE_BYTES, progress)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its size, which is looked at later
            with Image.open(data, formats=("GIF",)) as image:
                return bool(getattr(image, "is_animated", False))
    except Image.DecompressionBombError as error:
        raise _too_large(error) from error
    except _PILLOW_ERRORS:
        return True  # damaged: the video path says how


def _too_large(error: Exception) -> MediaError:
    return MediaError("too_large", f"the image has too many pixels ({error})")


def _image_error(error: Exception) -> MediaError:
    text = " ".join(str(error).split())
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return MediaError("truncated", f"the image is cut short ({text})")
    return MediaError("corrupt", f"the image cannot be decoded ({text})")
