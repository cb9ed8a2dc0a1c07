"""Which paths and URLs are opened at all, and how relative ones are completed: pure functions on text."""

import os
import re
from urllib.parse import unquote

from featlib.errors import ConfigError
from featlib.redaction import is_signed, redact

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_CHAINED = re.compile(r"::[A-Za-z0-9+.-]*:/")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_ENDPOINT = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[^\s?#]*)?")


def check_endpoint(url: str) -> str:
    """The URL of an object store.

    Raises:
        ValueError: It is none; what it is stands nowhere in the message, for it may hold a key.
    """
    if "@" in url:
        raise ValueError("must not hold a user or a password; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if not _ENDPOINT.fullmatch(url):
        raise ValueError("must be http:// or https:// and a host, like http://127.0.0.1:9000")
    return url


def is_s3(url: str) -> bool:
    return url.startswith("s3://")


def check_url(text: str) -> str:
    """The path or URL in its plain form: a local path, or ``s3://bucket/key``.

    ``file://`` becomes a local path. Everything else is refused, chained URLs (``a://b::c://d``) and user info
    included, because libraries further down open far more than was meant.

    Raises:
        ConfigError: The text is empty, holds control characters or is of a kind that is not opened.
    """
    if not text or _CONTROL.search(text):
        raise ConfigError(f"{redact(text)!r}: a path or URL is not empty and holds no control characters")
    scheme = _SCHEME.match(text)
    if scheme is None:
        return text
    if _CHAINED.search(text):
        raise ConfigError(f"{redact(text)!r}: chained URLs ('::') are not opened; give one path or s3:// URL")
    name, rest = scheme[1].lower(), text[scheme.end() :]
    if name == "s3" and rest.startswith("//"):
        return _checked_s3(rest[2:], text)
    if name == "file" and rest.startswith("//"):
        return _local_of_file_url(rest[2:], text)
    raise ConfigError(
        f"{redact(text)!r}: {name}: is not opened; use a local path (a name with a colon as ./NAME), file:// or s3://"
    )


def _checked_s3(rest: str, text: str) -> str:
    bucket = rest.partition("/")[0]
    if "@" in bucket or ":" in bucket or is_signed(rest):
        raise ConfigError(
            "an s3:// URL holds a key or a signature, or its bucket a colon: no keys in URLs; "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(f"{redact(text)!r}: {bucket!r} is not a bucket name; write s3://bucket/key")
    if not {".", ".."}.isdisjoint(rest.split("/")):
        raise ConfigError(f"{redact(text)!r}: '.' and '..' mean nothing in a bucket; write the key out")
    return f"s3://{rest}"


def _local_of_file_url(rest: str, text: str) -> str:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise ConfigError(f"{redact(text)!r}: a file URL has no host; write file:///path or the path alone")
    path = "/" + unquote(path)
    if _CONTROL.search(path):
        raise ConfigError(f"{redact(text)!r}: holds an encoded control character")
    return path


def split_s3(url: str) -> tuple[str, str]:
    """``s3://bucket/some/key`` as (``bucket``, ``some/key``)."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key


def folder_of(url: str) -> str:
    """The folder that relative URIs in the file at ``url`` start from: absolute, without a closing ``/``."""
    if is_s3(url):
        return url.rpartition("/")[0]
    return os.path.dirname(os.path.abspath(url)).rstrip("/")


def resolve(uri: str, base: str, *, local_media: bool = False) -> str:
    """``uri`` as an absolute path or URL; a relative one starts from the folder ``base``.

    There is no ``..`` in a bucket; a local one is kept, since links decide what it means.

    Args:
        local_media: A local path may be named while ``base`` is remote.

    Raises:
        ConfigError: The URI is not allowed, goes up in a bucket, or names a local path while ``base`` is remote.
    """
    url = check_url(uri)
    if is_s3(url):
        return url
    if url.startswith("/"):
        if is_s3(base) and not local_media:
            raise ConfigError(
                f"{redact(uri)!r}: a manifest in {redact(base)} cannot name local paths unless --local-media is given"
            )
        return url
    if is_s3(base) and is_signed(url):
        raise ConfigError(f"{redact(uri)!r}: holds a signature: no keys in URLs; set AWS_ACCESS_KEY_ID and the like")
    if _is_plain(url):
        return f"{base}/{url}"
    parts = [part for part in url.split("/") if part not in ("", ".")]
    if not parts:
        raise ConfigError(f"{redact(uri)!r}: names no file")
    if is_s3(base) and ".." in parts:
        raise ConfigError(f"{redact(uri)!r}: '..' is not followed in a bucket; write the whole s3:// URL")
    return "/".join((base, *parts))


def _is_plain(path: str) -> bool:
    return not path.startswith(".") and "/." not in path and "//" not in path
