"""A proxy in front of an HTTP store that answers wrongly when it is told to."""

import http.client
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from random import Random
from types import TracebackType
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal[
    "slow_down",
    "internal_error",
    "reset",
    "truncate",
    "lost_reply",
    "stall",
    "short_stall",
    "half_stall",
    "half_request",
    "flip_request",
    "flip_answer",
]
FAULTS: tuple[Fault, ...] = ("slow_down", "internal_error", "reset", "truncate", "lost_reply")
SHORT_STALL_S = 2.0
_ANSWERS = {"slow_down": (503, "SlowDown"), "internal_error": (500, "InternalError")}
_BY_CHANCE = re.compile(r"[0-9a-f]{10,}")  # ids of buckets, runs and drivers, hashes


class Turns:
    """Numbers requests by what they ask for, so that what befalls one does not depend on when it comes."""

    def __init__(self, seed: object) -> None:
        self._seed = seed
        self._asked = Counter[tuple[str, str]]()
        self._lock = threading.Lock()

    def next(self, method: str, path: str) -> Random:
        """What follows from the seed, the request without what is another in each run, and how often it came."""
        asked = method, _BY_CHANCE.sub("*", path)
        with self._lock:
            self._asked[asked] += 1
            number = self._asked[asked]
        return Random(f"{self._seed} {' '.join(asked)} {number}")


class FaultProxy:
    """Passes requests on, except those for which ``script`` names a fault.

    ``lost_reply``: the store does the work, the client never hears of it. ``stall``: no answer until the proxy stops.
    ``half_stall``: the same behind half of the body. ``short_stall``: no answer for a while, then a reset.
    ``truncate``: half of the body, where there is one.
    ``half_request``: half of the body is passed on, and then the client's end; ``cut`` gets the status of the answer.
    ``flip_request``, ``flip_answer``: one bit somewhere in the body is another, where there is a body.

    Args:
        upstream: URL of the store.
        script: Asked once a request with method and path; None passes it on.
        seed: Of the places of flipped bits.
    """

    def __init__(self, upstream: str, script: Callable[[str, str], Fault | None], seed: object = 0) -> None:
        self.requests: list[tuple[str, str, Fault | None]] = []
        self.num_flipped = 0
        self.has_half = threading.Event()
        self.cut: Queue[int | None] = Queue()
        self._script = script
        self.places = Turns(f"places {seed}")
        self._upstream = urlsplit(upstream).netloc
        self._stopped = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                self.close_connection = True
                fault = proxy._script(self.command, self.path)
                proxy.requests.append((self.command, self.path, fault))
                if fault == "half_request":
                    proxy._forward_half(self)
                    return
                body = _read_body(self)
                if fault in ("stall", "short_stall"):
                    proxy._stopped.wait(None if fault == "stall" else SHORT_STALL_S)
                if fault in ("reset", "stall", "short_stall"):
                    _reset(self.connection)
                elif fault in _ANSWERS:
                    _refuse(self, *_ANSWERS[fault])
                else:
                    proxy._forward(self, body, fault)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815 - names given by http.server

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in http.server
                pass

        return Handler

    def _begun(self, handler: BaseHTTPRequestHandler) -> http.client.HTTPConnection:
        """The same request to the store; its headers are not yet ended."""
        connection = http.client.HTTPConnection(self._upstream, timeout=60)
        connection.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
        for name, value in handler.headers.items():  # Host too: it is signed
            if name.lower() not in ("connection", "transfer-encoding", "expect"):
                connection.putheader(name, value)
        return connection

    def _forward_half(self, handler: BaseHTTPRequestHandler) -> None:
        connection = self._begun(handler)
        length = int(handler.headers["Content-Length"])
        connection.endheaders(handler.rfile.read(length // 2))
        self.has_half.set()
        with suppress(ConnectionError):
            while handler.rfile.read(1 << 16):
                pass
        connection.sock.shutdown(socket.SHUT_WR)
        try:
            self.cut.put(connection.getresponse().status)
        except (OSError, http.client.HTTPException):
            self.cut.put(None)
        connection.close()

    def _forward(self, handler: BaseHTTPRequestHandler, body: bytes, fault: Fault | None) -> None:
        connection = self._begun(handler)
        connection.endheaders(self._flipped(handler, body) if fault == "flip_request" else body)
        answer = connection.getresponse()
        data = answer.read()
        if fault == "flip_answer":
            data = self._flipped(handler, data)
        connection.close()
        if fault == "lost_reply":
            _reset(handler.connection)
            return
        handler.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding"):
                handler.send_header(name, value)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2] if fault in ("truncate", "half_stall") else data)
        if fault == "half_stall":
            handler.wfile.flush()
            self._stopped.wait()

    def _flipped(self, handler: BaseHTTPRequestHandler, data: bytes) -> bytes:
        """One bit is another."""
        random = self.places.next(handler.command, handler.path)
        if not data:
            return data
        self.num_flipped += 1
        return flipped(data, random.randrange(8 * len(data)))


def flipped(data: bytes, bit: int) -> bytes:
    """With that bit another one."""
    place, shift = divmod(bit, 8)
    return data[:place] + bytes([data[place] ^ 1 << shift]) + data[place + 1 :]


def _read_body(handler: BaseHTTPRequestHandler) -> bytes:
    return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))


def _refuse(handler: BaseHTTPRequestHandler, status: int, code: str) -> None:
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>scripted</Message></Error>'.encode()
    handler.send_response_only(status)
    for name, value in (("Content-Type", "application/xml"), ("Content-Length", len(text)), ("Connection", "close")):
        handler.send_header(name, str(value))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(text)


def _reset(connection: socket.socket) -> None:
    """Ends a connection with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
