"""A store far away: answers S3's GET and HEAD of a folder's files, each answer late, and counts what it gives.

``python -m benchmarks.far_store FOLDER LATENCY_MS`` prints its port, then one line ``requests bytes`` for every line
that it is sent. A process of its own, so that its CPU time is not that of whom it serves.
"""

import hashlib
import re
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_CHUNK_BYTES = 1 << 20


class FarStore:
    """Started by ``with``.

    Args:
        folder: Its files are the objects of every bucket.
        latency_s: Between a request and the first byte of its answer.
    """

    def __init__(self, folder: Path, latency_s: float) -> None:
        self._command = [sys.executable, "-m", "benchmarks.far_store", str(folder), str(latency_s * 1000)]
        self._process: subprocess.Popen[str] | None = None
        self.endpoint_url = ""

    def __enter__(self) -> Self:
        root = Path(__file__).resolve().parent.parent
        self._process = subprocess.Popen(
            self._command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.endpoint_url = f"http://127.0.0.1:{int(self._line())}"
        return self

    def counts(self) -> tuple[int, int]:
        """Requests and bytes of content so far."""
        if self._process is None or self._process.stdin is None:
            raise ValueError("the store does not run; use it in a with statement")
        print(file=self._process.stdin, flush=True)
        requests, num_bytes = self._line().split()
        return int(requests), int(num_bytes)

    def _line(self) -> str:
        if self._process is None or self._process.stdout is None:
            raise ValueError("the store does not run; use it in a with statement")
        return self._process.stdout.readline()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


class _Store(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path, latency_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.latency_s = latency_s
        self.lock = threading.Lock()
        self.num_requests = 0
        self.num_bytes = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Store

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _answer(self, *, has_body: bool) -> None:
        time.sleep(self.server.latency_s)
        path = self.server.folder / Path(self.path.partition("?")[0]).name
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        stop = min(int(wanted[2]) + 1, size) if wanted and wanted[2] else size
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{hashlib.md5(path.name.encode(), usedforsecurity=False).hexdigest()}"')
        self.send_header("Last-Modified", formatdate(path.stat().st_mtime, usegmt=True))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        with self.server.lock:
            self.server.num_requests += 1
            self.server.num_bytes += (stop - start) * has_body
        if has_body:
            self._send(path, start, stop)

    def _send(self, path: Path, start: int, stop: int) -> None:
        with path.open("rb") as file:
            file.seek(start)
            while start < stop:
                data = file.read(min(_CHUNK_BYTES, stop - start))
                self.wfile.write(data)
                start += len(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in http.server
        pass


def main(folder: str, latency_ms: str) -> None:
    """Serves until its input ends."""
    with _Store(Path(folder), float(latency_ms) / 1000) as store:
        threading.Thread(target=store.serve_forever, daemon=True).start()
        print(store.server_port, flush=True)
        for _ in sys.stdin:
            with store.lock:
                print(store.num_requests, store.num_bytes, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
