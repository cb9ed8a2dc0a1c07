"""What a store is asked with and what it answers: plain values."""

from dataclasses import dataclass

from featlib.errors import ConfigError
from featlib.storage.urls import check_endpoint


@dataclass(frozen=True)
class StoreOptions:
    """How to reach a store; holds no secrets, those come from the usual AWS environment of each process.

    Args:
        endpoint_url: Of an S3 store other than AWS; None: ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``, when set.
        anon: Send unsigned requests.
        deadline_s: How long one operation is repeated while the store does not answer properly: a
            minute without any store is outlived.

    Raises:
        ConfigError: ``endpoint_url`` is none.
    """

    endpoint_url: str | None = None
    anon: bool = False
    deadline_s: float = 120.0

    def __post_init__(self) -> None:
        if self.endpoint_url:
            named_endpoint("endpoint_url", self.endpoint_url)


def named_endpoint(name: str, url: str) -> str:
    """As ``check_endpoint``, with ``name`` before what is wrong.

    Raises:
        ConfigError: In place of its ``ValueError``.
    """
    try:
        return check_endpoint(url)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


DEFAULT_OPTIONS = StoreOptions()


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a store.

    Args:
        key: Relative to the output root, or the whole path or URL when media are listed.
        size: Bytes.
        modified: Seconds since 1970 by the store's clock; some stores count whole seconds only.
        etag: Changes when the content changes; None where the store gives none.
    """

    key: str
    size: int
    modified: float
    etag: str | None
