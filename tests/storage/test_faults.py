"""S3 through a proxy that answers wrongly: what is outlived, and what is said when it is not."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from featlib.errors import DamagedError, TransientError
from featlib.shards.staging import read_piece
from featlib.storage import Store, StoreOptions, open_media, retry, s3
from tests.servers.faults import FAULTS, Fault, FaultProxy
from tests.servers.swift import SwiftServer

pytestmark = pytest.mark.s3
DATA = os.urandom(1 << 20)


class Script:
    """Faults for the next requests, oldest first; None afterwards."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def __call__(self, method: str, path: str) -> Fault | None:
        return self.faults.pop(0) if self.faults else None


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def proxy(s3_env: SwiftServer, script: Script) -> Iterator[FaultProxy]:
    with FaultProxy(s3_env.endpoint_url, script) as proxy:
        yield proxy


@pytest.fixture
def store(s3_env: SwiftServer, proxy: FaultProxy) -> Store:
    return Store(f"s3://{s3_env.bucket()}/out", StoreOptions(proxy.endpoint_url, deadline_s=30))


@dataclass(frozen=True)
class Operation:
    """One request to a store in which ``a`` holds ``DATA``.

    Args:
        method: Of the request.
        begin: What comes before it; gives what sends the request.
        answer: What comes back of it.
        has_body: Whether a body comes back.
        left: What ``a`` holds then.
    """

    method: str
    begin: Callable[[Store], Callable[[], object]]
    answer: object
    has_body: bool
    left: bytes | None = DATA


def _put(store: Store) -> Callable[[], object]:
    return lambda: store.put("a", DATA[::-1])


def _get(store: Store) -> Callable[[], object]:
    return lambda: store.get("a")


def _list(store: Store) -> Callable[[], object]:
    return lambda: [(info.key, info.size) for info in store.list("")]


def _stat(store: Store) -> Callable[[], object]:
    def size() -> int | None:
        info = store.stat("a")
        return info and info.size

    return size


def _open_media(store: Store) -> Callable[[], object]:
    return lambda: open_media(f"{store.url}/a", store.options).size


def _read_media(store: Store) -> Callable[[], object]:
    return open_media(f"{store.url}/a", store.options).read


def _read_range(store: Store) -> Callable[[], object]:
    file = store.open("a")
    file.seek(1000)
    return lambda: file.read(5000)


def _read_announced(store: Store) -> Callable[[], object]:
    """Fetched by a thread of its own."""
    file = open_media(f"{store.url}/a", store.options)

    def read() -> bytes:
        file.expect([(1000, 6000)])
        file.seek(1000)
        return file.read(5000)

    return read


def _delete(store: Store) -> Callable[[], object]:
    return lambda: store.delete(["a"])


OPERATIONS = {
    "put": Operation("PUT", _put, None, has_body=False, left=DATA[::-1]),
    "get": Operation("GET", _get, DATA, has_body=True),
    "list": Operation("GET", _list, [("a", len(DATA))], has_body=True),
    "stat": Operation("HEAD", _stat, len(DATA), has_body=False),
    "open media": Operation("HEAD", _open_media, len(DATA), has_body=False),
    "read media": Operation("GET", _read_media, DATA, has_body=True),
    "read a range": Operation("GET", _read_range, DATA[1000:6000], has_body=True),
    "read an announced range": Operation("GET", _read_announced, DATA[1000:6000], has_body=True),
    "delete": Operation("POST", _delete, None, has_body=True, left=None),
}
STALLS = [(name, "stall") for name in OPERATIONS]
STALLS += [(name, "half_stall") for name, operation in OPERATIONS.items() if operation.has_body]


def _outlived(
    store: Store, script: Script, proxy: FaultProxy, operation: Operation, fault: Fault, count: int
) -> list[tuple[str, Fault | None]]:
    """Does an operation with so many faults before it, and makes sure of what came of it; gives its requests."""
    store.put("a", DATA)
    send = operation.begin(store)
    before = len(proxy.requests)
    script.faults = [fault] * count
    assert send() == operation.answer
    script.faults = []
    requests = [(method, befallen) for method, _, befallen in proxy.requests[before:]]
    left = [store.get(info.key) for info in store.list("")]
    assert left == ([] if operation.left is None else [operation.left])
    return requests


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_faults_in_a_row_are_outlived(
    store: Store,
    script: Script,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    operation: Operation,
    fault: Fault,
) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.02)
    requests = _outlived(store, script, proxy, operation, fault, 2)
    if fault == "truncate" and not operation.has_body:  # half of an empty answer is a whole one
        assert requests == [(operation.method, fault)]
    else:
        assert requests == [(operation.method, fault)] * 2 + [(operation.method, None)]


@pytest.mark.parametrize("fault", ["flip_answer", "flip_request", "short_stall"])
def test_flipped_bits_and_stalls_on_the_way_are_outlived(store: Store, script: Script, fault: Fault) -> None:
    script.faults = [fault]
    store.put("a", DATA)
    script.faults = [fault]
    assert store.get("a") == DATA
    assert script.faults == []


def test_a_bit_that_is_flipped_in_the_store_is_seen(store: Store, s3_env: SwiftServer) -> None:
    """Its metadata stay, as where a disk below the store is at fault."""
    import boto3

    store.put("a", DATA)
    bucket, _, key = f"{store.url}/a".removeprefix("s3://").partition("/")
    client = boto3.client("s3", endpoint_url=s3_env.endpoint_url)
    metadata = client.head_object(Bucket=bucket, Key=key)["Metadata"]
    client.put_object(Bucket=bucket, Key=key, Body=DATA[:-1] + bytes([DATA[-1] ^ 4]), Metadata=metadata)
    with pytest.raises(DamagedError, match=r"s3://.*/a: is damaged"):
        store.get("a")


def test_a_damaged_piece_in_a_store_counts_as_not_staged(store: Store, s3_env: SwiftServer) -> None:
    """It is done again; a job that stopped at it would stop for ever."""
    import boto3

    store.put("stage/00000/r-0-abc.piece", DATA)
    bucket, _, key = f"{store.url}/stage/00000/r-0-abc.piece".removeprefix("s3://").partition("/")
    client = boto3.client("s3", endpoint_url=s3_env.endpoint_url)
    metadata = client.head_object(Bucket=bucket, Key=key)["Metadata"]
    client.put_object(Bucket=bucket, Key=key, Body=b"other bytes", Metadata=metadata)
    assert read_piece(store, "stage/00000/r-0-abc.piece") is None


def test_objects_of_others_are_read_as_they_are(store: Store, s3_env: SwiftServer) -> None:
    import boto3

    bucket, _, key = f"{store.url}/a".removeprefix("s3://").partition("/")
    boto3.client("s3", endpoint_url=s3_env.endpoint_url).put_object(Bucket=bucket, Key=key, Body=b"theirs")
    assert store.get("a") == b"theirs"


def test_a_put_is_one_request(store: Store, proxy: FaultProxy) -> None:
    data = bytes(120 << 20)  # above the size at which s3fs would begin a multipart upload
    before = len(proxy.requests)
    store.put("big", data)
    assert [method for method, _, _ in proxy.requests[before:]] == ["PUT"]
    info = store.stat("big")
    assert info is not None
    assert info.size == len(data)


def test_past_the_deadline_the_error_names_operation_and_place(
    s3_env: SwiftServer, proxy: FaultProxy, script: Script
) -> None:
    bucket = s3_env.bucket()
    store = Store(f"s3://{bucket}/out", StoreOptions(proxy.endpoint_url, deadline_s=0.5))
    store.put("a", b"old")
    file = open_media(f"{store.url}/a", store.options)
    script.faults = ["slow_down"] * 1000
    for call in (lambda: store.put("a", b"new"), lambda: store.get("a"), lambda: store.list(""), lambda: file.read()):
        with pytest.raises(TransientError, match=r"no proper answer within 0\.5 s") as caught:
            call()
        assert f"s3://{bucket}/out" in str(caught.value)
        assert "\n" not in str(caught.value)
    script.faults = []
    assert store.get("a") == b"old"
    assert file.read() == b"old"


def test_nobody_listening(s3_env: SwiftServer) -> None:
    with FaultProxy(s3_env.endpoint_url, lambda *_: None) as stopped:
        endpoint = stopped.endpoint_url
    store = Store("s3://bucket/out", StoreOptions(endpoint, deadline_s=0.5))
    with pytest.raises(TransientError, match="EndpointConnectionError"):
        store.get("a")


_FORKED = """
import os, sys
from featlib.storage import Store
store = Store(sys.argv[1])
store.put("a", b"parent")
child = os.fork()
if child == 0:
    ok = store.get("a") == b"parent"
    store.put("b", b"child")
    os._exit(0 if ok else 1)
assert os.waitpid(child, 0)[1] == 0
assert store.get("b") == b"child"
"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Half a second without a byte is too long; it is 30 s for users."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(s3, "_READ_TIMEOUT_S", 0.5)
    s3._client_of.cache_clear()
    yield
    s3._client_of.cache_clear()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("name", "fault"), STALLS)
def test_an_answer_that_never_ends_is_given_up_and_asked_for_again(
    store: Store, script: Script, proxy: FaultProxy, name: str, fault: Fault
) -> None:
    operation = OPERATIONS[name]
    requests = _outlived(store, script, proxy, operation, fault, 1)
    assert requests[:2] == [(operation.method, fault), (operation.method, None)]


def test_a_forked_process_gets_its_own_connection(s3_env: SwiftServer) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _FORKED, f"s3://{s3_env.bucket()}"]
    ended = subprocess.run(command, timeout=60, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_kill_in_the_middle_of_a_put_shows_nothing(
    store: Store, s3_env: SwiftServer, proxy: FaultProxy, script: Script
) -> None:
    """Half of it has come to the store, and by the end of the test the store has given it up."""
    store.put("a", b"old")
    script.faults = ["half_request"]
    code = "import sys; from featlib.storage import Store; Store(sys.argv[1]).put('a', bytes(8 << 20))"
    environment = {**os.environ, "AWS_ENDPOINT_URL": proxy.endpoint_url}
    with subprocess.Popen([sys.executable, "-c", code, store.url], env=environment) as process:
        assert proxy.has_half.wait(60)
        process.send_signal(signal.SIGKILL)
    status = proxy.cut.get(timeout=60)
    assert status is None or status >= 400
    assert [info.size for info in store.list("")] == [3]
    assert store.get("a") == b"old"


_OWNER = """
import os, sys
from pathlib import Path
from tests.servers.swift import SwiftServer
with SwiftServer(Path(sys.argv[1])) as server:
    print(*(process.pid for process in server.processes), flush=True)
    sys.stdin.read()
"""


def test_the_server_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _OWNER, str(tmp_path / "swift")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        handles = [os.pidfd_open(pid) for pid in pids]
        owner.kill()
    assert len(handles) == 4
    for handle in handles:
        assert select.select([handle], [], [], 20)[0]
        os.close(handle)
