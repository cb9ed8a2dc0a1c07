"""S3 through a proxy that answers wrongly: what is outlived, and what is said when it is not."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from featlib.errors import DamagedError, TransientError
from featlib.shards.staging import read_piece
from featlib.storage import Store, StoreOptions, open_media, s3
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


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_a_row_are_outlived(store: Store, script: Script, proxy: FaultProxy, fault: Fault) -> None:
    def faulty() -> None:
        script.faults = [fault] * 2

    faulty()
    store.put("a", DATA)
    faulty()
    assert store.get("a") == DATA
    faulty()
    assert [info.key for info in store.list("")] == ["a"]
    faulty()
    with open_media(f"{store.url}/a", store.options) as file:
        assert file.read() == DATA
    faulty()
    store.delete(["a"])
    assert script.faults == []
    assert store.stat("a") is None
    if fault != "truncate":  # half of an empty answer is a whole one
        assert [found for _, _, found in proxy.requests].count(fault) == 10


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


@pytest.mark.parametrize("fault", ["stall", "half_stall"])
def test_an_answer_that_never_ends_is_given_up_and_asked_for_again(
    store: Store, script: Script, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(s3, "_READ_TIMEOUT_S", 1)
    s3._client_of.cache_clear()
    try:
        for name in ("a", "b"):
            script.faults = [fault] if fault == "stall" else []
            store.put(name, DATA)
            script.faults = [fault] * 2
            assert store.get(name) == DATA
            assert not script.faults
    finally:
        s3._client_of.cache_clear()


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
