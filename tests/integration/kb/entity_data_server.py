"""A real HTTP server that answers as ``Special:EntityData`` does, and misbehaves on command."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

JSON_TYPE = "application/json; charset=UTF-8"
Fault = Callable[["Handler", bytes], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: EntityDataServer

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers)))
            fault = self.server.faults.popleft() if self.server.faults else None
        status, body = self.server.answer(self.path)
        if fault is not None:
            fault(self, body)
        elif 300 <= status < 400:
            self.send(status, b"", Location=body.decode())
        else:
            self.send(status, body)
        self.close_connection = True

    def send(self, status: int, body: bytes, content_type: str = JSON_TYPE, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        pass


class EntityDataServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, documents: list[dict[str, Any]], redirects: list[tuple[str, str]] = []) -> None:  # noqa: B006
        super().__init__(("127.0.0.1", 0), Handler)
        self.documents = {one["id"]: one for one in documents}
        self.redirects = dict(redirects)
        self.faults: deque[Fault] = deque()
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.lock = threading.Lock()

    def answer(self, path: str) -> tuple[int, bytes]:
        """The wiki's own answers: a page of the exact id, a redirect to it, 404."""
        name = path.removeprefix("/wiki/Special:EntityData/").removesuffix(".json")
        if name != name.upper():
            return 301, f"/wiki/Special:EntityData/{name.upper()}.json".encode()
        entity = self.redirects.get(name, name)
        if entity not in self.documents:
            return 404, b"{}"
        return 200, json.dumps({"entities": {entity: self.documents[entity]}}).encode()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/wiki/Special:EntityData"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.shutdown()
        self.server_close()
