"""One HTTP exchange with a total deadline, on SPARQLWrapper's request and urllib's connection.

SPARQLWrapper builds the request (form POST, Accept, agent). Sending it is done here, because its own opener
follows a redirect as a GET without the query, loses the headers of a 500, and times single reads, not the
exchange.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import urllib.request
import zlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from SPARQLWrapper import JSON, POST, SPARQLWrapper

from kb.errors import (
    EndpointTimeoutError,
    EndpointUnreachableError,
    ReplyTooLargeError,
    TruncatedReplyError,
)

if TYPE_CHECKING:
    from email.message import Message

    from kb.endpoint import Endpoint

_CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply with its body unpacked."""

    status: int
    headers: Message
    body: bytes


class _Deadline:
    """Shuts the connection's socket when time is up: the one thing that ends a read that drips."""

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:  # noqa: PYI034  (private, never subclassed)
        self._timer.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._timer.cancel()

    def watch(self, sock: socket.socket) -> None:
        with self._lock:
            if self.expired:
                raise TimeoutError
            self._sockets.append(sock)

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            for sock in self._sockets:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # closed already: nothing is left to interrupt


class _Connection(http.client.HTTPConnection):
    def __init__(self, *args: Any, deadline: _Deadline, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._deadline = deadline

    def connect(self) -> None:
        super().connect()
        self._deadline.watch(self.sock)


class _SecureConnection(http.client.HTTPSConnection):
    def __init__(self, *args: Any, deadline: _Deadline, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._deadline = deadline

    def connect(self) -> None:
        super().connect()
        self._deadline.watch(self.sock)


class _PlainHandler(urllib.request.HTTPHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_Connection, deadline=self._deadline), req)  # type: ignore[arg-type]


class _SecureHandler(urllib.request.HTTPSHandler):
    def __init__(self, deadline: _Deadline) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(context=self._tls)
        self._deadline = deadline

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        connection = partial(_SecureConnection, deadline=self._deadline)
        return self.do_open(connection, req, context=self._tls)  # type: ignore[arg-type]


def _opener(endpoint: Endpoint, deadline: _Deadline) -> urllib.request.OpenerDirector:
    """An opener without redirects and without error classes: every status comes back as a plain reply."""
    opener = urllib.request.OpenerDirector()
    proxies = {"http": endpoint.proxy, "https": endpoint.proxy} if endpoint.proxy else {}
    opener.add_handler(urllib.request.ProxyHandler(proxies))
    opener.add_handler(_PlainHandler(deadline))
    opener.add_handler(_SecureHandler(deadline))
    return opener


def _request(endpoint: Endpoint, query: str) -> urllib.request.Request:
    wrapper = SPARQLWrapper(endpoint.url, agent=endpoint.agent)
    wrapper.setMethod(POST)
    wrapper.setReturnFormat(JSON)
    wrapper.setQuery(query)
    wrapper.setOnlyConneg(True)
    # the only seam between building a request and opening it
    request: urllib.request.Request = wrapper._createRequest()  # noqa: SLF001
    request.add_header("Accept-Encoding", "gzip")
    return request


def exchange(endpoint: Endpoint, query: str) -> Reply:
    """Post a query and read the whole reply, whatever its status; see `send`."""
    return send(endpoint, _request(endpoint, query))


def get(endpoint: Endpoint, url: str) -> Reply:
    """Get a JSON document below an endpoint and read the whole reply, whatever its status; see `send`."""
    headers = {"User-Agent": endpoint.agent, "Accept": "application/json", "Accept-Encoding": "gzip"}
    return send(endpoint, urllib.request.Request(url, headers=headers))  # noqa: S310  Endpoint checked it


def send(endpoint: Endpoint, request: urllib.request.Request) -> Reply:
    """Send a request and read the whole reply, whatever its status.

    Args:
        endpoint: whose deadline, proxy and limits count.
        request: what to send.

    Returns:
        Status, headers and unpacked body.

    Raises:
        EndpointTimeoutError: the total deadline passed.
        EndpointUnreachableError: no connection, or it broke before the reply began.
        TruncatedReplyError: it broke within the body.
        ReplyTooLargeError: the body is longer than allowed.
    """
    with _Deadline(endpoint.timeout_s) as deadline:
        received = bytearray()
        started = False
        try:
            with _opener(endpoint, deadline).open(request, timeout=endpoint.timeout_s) as response:
                started = True
                _read(response, received, endpoint)
                if deadline.expired:
                    raise TimeoutError
                return Reply(response.status, response.headers, _unpacked(response, received, endpoint))
        except (OSError, http.client.HTTPException, TruncatedReplyError) as error:
            reason = getattr(error, "reason", error)
            if deadline.expired or isinstance(reason, TimeoutError):
                raise EndpointTimeoutError(
                    f"No complete reply from {endpoint.url} within {endpoint.timeout_s:g} s; "
                    "ask for less, or raise the timeout.",
                    url=endpoint.url,
                    timeout_s=endpoint.timeout_s,
                ) from error
            if isinstance(error, TruncatedReplyError):
                raise
            if started:
                raise _truncated(endpoint, len(received)) from error
            raise EndpointUnreachableError(
                f"Cannot reach {endpoint.url} ({reason}); check the network and the endpoint setting.",
                url=endpoint.url,
            ) from error


def _truncated(endpoint: Endpoint, count: int) -> TruncatedReplyError:
    return TruncatedReplyError(
        f"The reply of {endpoint.url} broke off after {count} bytes; a smaller question may succeed.",
        url=endpoint.url,
        received_bytes=count,
    )


def _too_large(endpoint: Endpoint) -> ReplyTooLargeError:
    return ReplyTooLargeError(
        f"The reply of {endpoint.url} exceeds {endpoint.max_reply_bytes} bytes; lower the batch size.",
        url=endpoint.url,
        limit_bytes=endpoint.max_reply_bytes,
    )


def _read(response: http.client.HTTPResponse, received: bytearray, endpoint: Endpoint) -> None:
    while True:
        chunk = response.read1(_CHUNK)
        if not chunk:
            break
        received += chunk
        if len(received) > endpoint.max_reply_bytes:
            raise _too_large(endpoint)
    announced = response.headers.get("Content-Length", "")
    # read1 does not raise IncompleteRead, so a short body must be seen here
    if announced.isdigit() and len(received) < int(announced):
        raise _truncated(endpoint, len(received))


def _unpacked(response: http.client.HTTPResponse, received: bytearray, endpoint: Endpoint) -> bytes:
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in {"", "identity"}:
        return bytes(received)
    if encoding not in {"gzip", "x-gzip"}:
        return bytes(received)  # not asked for: the reader sees bytes that are no JSON and says so
    inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        body = inflater.decompress(bytes(received), endpoint.max_reply_bytes + 1)
    except zlib.error as error:
        raise _truncated(endpoint, len(received)) from error
    if len(body) > endpoint.max_reply_bytes:
        raise _too_large(endpoint)
    if not inflater.eof:
        raise _truncated(endpoint, len(received))
    return body
