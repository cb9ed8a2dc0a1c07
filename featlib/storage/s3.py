"""Objects of an S3 store: the only file that knows fsspec and s3fs, both loaded when first needed.

One request an operation, repeated by ``retry.retrying`` alone: the retries inside botocore and s3fs are switched off,
so that the deadline holds and is written down in one place.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any, TypeVar

from featlib.errors import ConfigError, DamagedError, StoppedError, TransientError
from featlib.redaction import redact
from featlib.storage.objects import ObjectInfo, StoreOptions, named_endpoint
from featlib.storage.retry import is_transient, retrying
from featlib.storage.urls import split_s3

T = TypeVar("T")

MAX_PUT_BYTES = 5 * 2**30  # Amazon S3 User Guide, "Uploading objects": most for a single PutObject
_SHA256 = "featlib-sha256"  # name in the metadata of every object that is put
_READS_OF_DAMAGED = 4
_DELETE_BATCH = 1000  # API reference, DeleteObjects
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 30
_EXPIRED_CODES = frozenset({"ExpiredToken", "InvalidToken", "RequestTimeTooSkewed", "TokenRefreshRequired"})
_TRANSIENT_CODES = frozenset(
    {
        "BadDigest",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "XAmzContentSHA256Mismatch",
    }
)


class StaleObjectError(StoppedError):
    """The object was replaced while it was read."""


class NoBucketError(ConfigError):
    """There is no such bucket."""


def endpoint_url(options: StoreOptions) -> str | None:
    """Where the store is; None: AWS.

    Raises:
        ConfigError: A variable holds no endpoint.
    """
    if options.endpoint_url:
        return options.endpoint_url
    name = next((name for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if os.environ.get(name)), None)
    return named_endpoint(name, os.environ[name]) if name else None


def put(url: str, data: bytes | memoryview, options: StoreOptions) -> None:
    """One PutObject: the store shows the whole object or none."""
    if len(data) > MAX_PUT_BYTES:
        raise StoppedError(f"{redact(url)}: {len(data)} bytes are too many for one object; S3 allows {MAX_PUT_BYTES}")
    bucket, key = split_s3(url)
    body = bytes(data)
    metadata = {_SHA256: hashlib.sha256(body).hexdigest()}
    _call("write", url, options, "put_object", Bucket=bucket, Key=key, Body=body, Metadata=metadata)


def get(url: str, options: StoreOptions, byte_range: tuple[int, int] | None = None, etag: str | None = None) -> bytes:
    """The whole object, or its bytes ``[start, stop)``; with ``etag`` only while it is still the same object.

    A whole object that ``put`` put is held against its SHA-256.

    Raises:
        FileNotFoundError: There is no such object.
        StaleObjectError: It is another one by now.
        DamagedError: Its bytes are not those that were put, however often it is read.
    """
    if byte_range is not None:
        return _get(url, options, byte_range, etag)[0]
    for _ in range(_READS_OF_DAMAGED):  # a bit may have been flipped on the way
        body, promised = _get(url, options, None, etag)
        if promised is None or hashlib.sha256(body).hexdigest() == promised:
            return body
    raise DamagedError(redact(url))


def _get(
    url: str, options: StoreOptions, byte_range: tuple[int, int] | None, etag: str | None
) -> tuple[bytes, str | None]:
    """Bytes of an object, and the SHA-256 of all of them, where one was put with it."""
    from fsspec.asyn import sync

    bucket, key = split_s3(url)
    request: dict[str, Any] = {"Bucket": bucket, "Key": key}
    if byte_range is not None:
        request["Range"] = f"bytes={byte_range[0]}-{byte_range[1] - 1}"
    if etag is not None:
        request["IfMatch"] = f'"{etag}"'

    def fetch() -> tuple[bytes, str | None]:
        client = _client(options)
        body, metadata, found = sync(client.loop, _read_body, client, request)
        if etag is not None and found not in ("", etag):  # there are stores that heed no If-Match
            raise StaleObjectError(f"{redact(url)}: was replaced while it was read; read it again")
        if byte_range is not None and len(body) != byte_range[1] - byte_range[0]:
            raise ConnectionError(f"{len(body)} bytes came of {byte_range[1] - byte_range[0]}")
        return body, metadata.get(_SHA256)

    return _guarded("read", url, options, fetch)


async def _read_body(client: Any, request: dict[str, Any]) -> tuple[bytes, dict[str, str], str]:
    """The body, the metadata in lower case and the etag."""
    response = await client._call_s3("get_object", **request)
    async with response["Body"] as body:
        data: bytes = await body.read()
    metadata = {name.lower(): value for name, value in response.get("Metadata", {}).items()}
    return data, metadata, str(response.get("ETag", "")).strip('"')


def head(url: str, options: StoreOptions) -> ObjectInfo:
    """Size, time and etag of one object, under its whole URL.

    Raises:
        FileNotFoundError: There is no such object.
    """
    bucket, key = split_s3(url)
    answer = _call("look up", url, options, "head_object", Bucket=bucket, Key=key)
    return ObjectInfo(url, answer["ContentLength"], answer["LastModified"].timestamp(), answer["ETag"].strip('"'))


def listing(url: str, options: StoreOptions) -> Iterator[ObjectInfo]:
    """Every object whose URL starts with ``url``, in the store's order, one page of the listing at a time.

    Raises:
        ConfigError: There is no such bucket.
    """
    bucket, prefix = split_s3(url)
    page: dict[str, Any] = {}
    while True:
        answer = _call("list", url, options, "list_objects_v2", Bucket=bucket, Prefix=prefix, **page)
        for entry in answer.get("Contents", ()):
            if not entry["Key"].endswith("/"):  # consoles leave empty objects that stand for folders
                etag = entry["ETag"].strip('"')
                yield ObjectInfo(
                    f"s3://{bucket}/{entry['Key']}", entry["Size"], entry["LastModified"].timestamp(), etag
                )
        if not answer.get("IsTruncated"):
            return
        page = {"ContinuationToken": answer["NextContinuationToken"]}


def delete(urls: Iterable[str], options: StoreOptions) -> None:
    """Removes objects of one bucket; those that are not there are no error."""
    split = [split_s3(url) for url in urls]
    for first in range(0, len(split), _DELETE_BATCH):
        batch = split[first : first + _DELETE_BATCH]
        keys = {"Objects": [{"Key": key} for _, key in batch], "Quiet": True}
        url = f"s3://{batch[0][0]}/{batch[0][1]}"
        _guarded("delete", url, options, partial(_delete_batch, options, batch[0][0], keys))


def _delete_batch(options: StoreOptions, bucket: str, keys: dict[str, Any]) -> None:
    answer = _client(options).call_s3("delete_objects", Bucket=bucket, Delete=keys)
    refused = [error for error in answer.get("Errors", ()) if error.get("Code") != "NoSuchKey"]
    if not refused:
        return
    first = refused[0]
    text = f"{len(refused)} objects, the first {first.get('Key')}: {first.get('Code')} {first.get('Message')}"
    if first.get("Code") == "AccessDenied":
        raise PermissionError(text)
    raise ConnectionError(text)


def _call(verb: str, url: str, options: StoreOptions, method: str, **request: Any) -> Any:
    return _guarded(verb, url, options, lambda: _client(options).call_s3(method, **request))


def _guarded(verb: str, url: str, options: StoreOptions, call: Callable[[], T]) -> T:
    """Repeats what is transient and puts the rest in words."""
    try:
        return retrying(f"{verb} {url}", call, deadline_s=options.deadline_s, transient=_is_transient)
    except FileNotFoundError as error:
        if _status_and_code(error)[1] == "NoSuchBucket":
            raise NoBucketError(f"{redact(url)}: there is no bucket {split_s3(url)[0]!r}; make it first") from error
        raise
    except OSError as error:
        if _status_and_code(error)[1] in _EXPIRED_CODES:
            raise TransientError(f"cannot {verb} {redact(url)}: the credentials have expired; renew them") from error
        if isinstance(error, PermissionError):
            raise
        if _status_and_code(error)[0] == 412:
            raise StaleObjectError(f"{redact(url)}: was replaced while it was read; read it again") from error
        raise StoppedError(f"cannot {verb} {redact(url)}: {redact(str(error))}") from error
    except Exception as error:
        if _names(error) & {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}:
            raise ConfigError(
                f"cannot {verb} {redact(url)}: {redact(str(error))}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or --anon for a public bucket"
            ) from error
        if isinstance(error, ValueError) and str(error).startswith("Invalid endpoint"):  # of a profile
            raise ConfigError("endpoint_url of the AWS profile: is none; see AWS_PROFILE and ~/.aws/config") from None
        raise


def _is_transient(error: BaseException) -> bool:
    if _names(error) & {"BotoCoreError", "ClientError", "ResponseParserError"}:
        return _is_transient_of_client(error)
    if isinstance(error, RuntimeError) and "redentials were refreshed" in str(error):  # botocore's, of expired ones
        return True
    status, code = _status_and_code(error)
    if status is None:
        return is_transient(error)
    return status >= 500 or status in (408, 429) or code in _TRANSIENT_CODES


def _is_transient_of_client(error: BaseException) -> bool:
    """Of botocore and aiohttp; both call an unreadable answer and a broken connection by many names."""
    from aiohttp import ClientError
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    passing = (
        ClientError,
        ResponseParserError,
        boto.ConnectionError,
        boto.CredentialRetrievalError,
        boto.FlexibleChecksumError,
        boto.HTTPClientError,
        boto.IncompleteReadError,
    )
    return isinstance(error, passing)


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _status_and_code(error: BaseException) -> tuple[int | None, str]:
    """HTTP status and S3 error code behind an OSError of s3fs; (None, "") when the store gave no answer."""
    answer = getattr(error.__cause__, "response", None) or {}
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status, str(answer.get("Error", {}).get("Code", ""))


def _client(options: StoreOptions) -> Any:
    """This process's own file system: its event loop and sockets do not survive a fork."""
    return _client_of(os.getpid(), endpoint_url(options), options.anon)


@lru_cache(maxsize=8)
def _client_of(_pid: int, endpoint: str | None, anon: bool) -> Any:
    from s3fs import S3FileSystem

    client = S3FileSystem(
        anon=anon,
        endpoint_url=endpoint,
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "read_timeout": _READ_TIMEOUT_S,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "max_pool_connections": 32,
        },
    )
    client.retries = 1
    return client


def arrow_filesystem(url: str, options: StoreOptions) -> tuple[Any, str]:
    """pyarrow's own S3 file system and the path in it; pickled without keys, which each process looks up itself."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, resolve_s3_region

    endpoint = endpoint_url(options)
    bucket, key = split_s3(url)
    settings: dict[str, Any] = {
        "anonymous": options.anon,
        "retry_strategy": AwsStandardS3RetryStrategy(max_attempts=10),
    }
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        settings.update(scheme=scheme or "https", endpoint_override=host.rstrip("/"))
    settings["region"] = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not settings["region"]:
        settings["region"] = "us-east-1" if endpoint else resolve_s3_region(bucket)
    return S3FileSystem(**settings), f"{bucket}/{key}".rstrip("/")
