"""A real HTTP server in front of a real SPARQL server, that misbehaves on command."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import time
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tests.integration.kb.replying import Background, Replier

JSON_TYPE = "application/sparql-results+json"
BAN = (
    b"You have been banned until 2026-09-02T02:00:00.000Z, please respect throttling and retry-after headers."
)
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""The way to the real server, whatever proxy a test sets."""
Fault = Callable[["Handler", bytes], None]


class Handler(Replier):
    content_type = JSON_TYPE
    server: FaultServer

    def do_POST(self) -> None:  # noqa: N802 - the base class calls it so
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((dict(self.headers), body))
        with self.server.lock:
            self.server.running += 1
            self.server.most_running = max(self.server.most_running, self.server.running)
            fault = self.server.faults.popleft() if self.server.faults else self.server.always
        try:
            time.sleep(self.server.delay_s)
            reply = self.forward(body)
            (fault or plain)(self, reply)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up first, which some tests want
        finally:
            with self.server.lock:
                self.server.running -= 1
            self.close_connection = True

    def do_GET(self) -> None:  # noqa: N802 - the base class calls it so
        self.server.requests.append((dict(self.headers), b""))
        self.send(200, b"a GET has lost its query", content_type="text/plain")

    def forward(self, body: bytes) -> bytes:
        headers = {"Content-Type": self.headers["Content-Type"], "Accept": JSON_TYPE}
        request = urllib.request.Request(self.server.upstream, data=body, headers=headers)
        try:
            with DIRECT.open(request, timeout=30) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            return error.read()


class FaultServer(Background):
    def __init__(self, upstream: str) -> None:
        super().__init__(Handler)
        self.upstream = upstream
        self.faults: deque[Fault] = deque()
        self.always: Fault | None = None
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.running = self.most_running = 0
        self.delay_s = 0.0

    @property
    def url(self) -> str:
        return f"{self.root}/query"


def plain(handler: Handler, reply: bytes) -> None:
    handler.send(200, reply)


def answer(status: int, body: bytes = b"", content_type: str = "text/plain", **headers: str) -> Fault:
    return lambda handler, _: handler.send(status, body, content_type, **headers)


def altered(change: Callable[[bytes], bytes], content_type: str = JSON_TYPE, **headers: str) -> Fault:
    """The true reply, changed."""
    return lambda handler, reply: handler.send(200, change(reply), content_type, **headers)


def truncated(reply: bytes) -> bytes:
    return reply[: len(reply) // 2]


def truncated_with_trace(reply: bytes) -> bytes:
    """As Blazegraph does when its deadline passes in the middle of a reply."""
    return (
        truncated(reply)
        + b"\njava.util.concurrent.TimeoutException\n\tat java.util.concurrent.FutureTask.get\n"
    )


def timeout_behind_the_query(handler: Handler, _: bytes) -> None:
    """As Blazegraph's page of an error: all of the query first, however long it is."""
    (query,) = urllib.parse.parse_qs(handler.server.requests[-1][1].decode())["query"]
    query += "# " + "x" * 30_000
    text = f"SPARQL-QUERY: queryStr={query}\njava.util.concurrent.TimeoutException\n\tat java"
    handler.send(500, text.encode(), "text/plain")


def short(handler: Handler, reply: bytes) -> None:
    """Announces more than it sends."""
    handler.send(200, truncated(reply), Content_Length=str(len(reply)))


def reset_before(handler: Handler, _: bytes) -> None:
    _reset(handler.connection)


def reset_within(handler: Handler, reply: bytes) -> None:
    handler.send(200, truncated(reply), Content_Length=str(len(reply)))
    handler.wfile.flush()
    _reset(handler.connection)


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with suppress(OSError):
        connection.close()


def chunked_cut(handler: Handler, reply: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", JSON_TYPE)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    half = truncated(reply)
    handler.wfile.write(f"{len(half):x}\r\n".encode() + half + b"\r\n")


def drip(handler: Handler, reply: bytes) -> None:
    """A byte at a time: no single read is slow."""
    handler.send_response(200)
    handler.send_header("Content-Type", JSON_TYPE)
    handler.send_header("Content-Length", str(len(reply)))
    handler.end_headers()
    for byte in reply[:100]:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.05)


def drip_headers(handler: Handler, _: bytes) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nContent-Type: application/sparql-results+json\r\nX-Slow: " + b"x" * 100:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.05)


def silence(handler: Handler, _: bytes) -> None:
    time.sleep(3)


def packed(handler: Handler, reply: bytes) -> None:
    handler.send(200, gzip.compress(reply), Content_Encoding="gzip")


def packed_cut(handler: Handler, reply: bytes) -> None:
    handler.send(200, truncated(gzip.compress(reply)), Content_Encoding="gzip")


def bomb(handler: Handler, _: bytes) -> None:
    handler.send(200, gzip.compress(b" " * 50_000_000), Content_Encoding="gzip")


def rows(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Fault:
    """The true reply with its rows changed."""

    def alter(reply: bytes) -> bytes:
        raw = json.loads(reply)
        raw["results"]["bindings"] = change(raw["results"]["bindings"])
        return json.dumps(raw).encode()

    return altered(alter)
