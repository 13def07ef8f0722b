"""What the servers of these tests share: a thread of their own, and replies as they are told."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self


class Replier(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    content_type: ClassVar[str]

    def send(self, status: int, body: bytes, content_type: str | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type or self.content_type)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        pass


class Background(ThreadingHTTPServer):
    """Serves on a free port of this machine while a block lasts."""

    daemon_threads = True

    def __init__(self, handler: type[Replier]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.lock = threading.Lock()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.shutdown()
        self.server_close()
