"""Still images: told by their first bytes, opened with Pillow, upright RGB out."""

import io
import struct
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from featlib.errors import MediaError
from featlib.media.open import check_pixels
from featlib.media.source import Source

MAX_FILE_BYTES = 512 << 20
HEAD_BYTES = 32
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_BMP_HEADER_BYTES = (12, 40, 52, 56, 64, 108, 124)
_PILLOW_ERRORS = (UnidentifiedImageError, OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError)


def is_image(source: Source) -> bool:
    """Whether the content is a still image; an animated GIF is a video."""
    head = source.head(HEAD_BYTES)
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return not _is_animated(source)
    return (
        head[:3] == b"\xff\xd8\xff"
        or head[:8] == b"\x89PNG\r\n\x1a\n"
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or head[:4] in (b"II*\x00", b"MM\x00*")
        or (head[:2] == b"BM" and len(head) > 18 and int.from_bytes(head[14:18], "little") in _BMP_HEADER_BYTES)
    )


def read_image(source: Source, max_pixels: int) -> npt.NDArray[np.uint8]:
    """(height, width, 3) RGB, turned as its EXIF says.

    Colour is what Pillow's ``convert("RGB")`` gives, which torchvision's image folders use too: transparency is
    dropped, not blended; CMYK is converted without a colour profile. 16-bit grey keeps its upper 8 bits. Of an
    animated WebP or PNG, or a TIFF with several pages, it is the first picture.

    Raises:
        MediaError: ``too_large``, ``truncated``, ``corrupt`` or ``unsupported_codec``.
    """
    if source.size is not None and source.size > MAX_FILE_BYTES:
        raise MediaError("too_large", f"an image file of {source.size} bytes; the limit is {MAX_FILE_BYTES}")
    data = source.at(0, MAX_FILE_BYTES)
    if source.size is not None and len(data) < source.size:
        raise MediaError("truncated", f"the store gave {len(data)} of {source.size} bytes", retryable=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # max_pixels is the rule here, and odd metadata is no outcome
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                check_pixels(image.width, image.height, max_pixels)
                return _rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise MediaError("too_large", f"the image has too many pixels ({error})") from error
    except (*_PILLOW_ERRORS, struct.error) as error:
        raise _image_error(error) from error


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


def _is_animated(source: Source) -> bool:
    source.file.seek(0)
    data = io.BytesIO(source.file.read(MAX_FILE_BYTES))
    try:
        with Image.open(data, formats=("GIF",)) as image:
            return bool(getattr(image, "is_animated", False))
    except _PILLOW_ERRORS:
        return True  # damaged: the video path says how


def _image_error(error: Exception) -> MediaError:
    text = " ".join(str(error).split())
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return MediaError("truncated", f"the image is cut short ({text})")
    return MediaError("corrupt", f"the image cannot be decoded ({text})")
