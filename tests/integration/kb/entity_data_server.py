"""A real HTTP server that answers as ``Special:EntityData`` does, and misbehaves on command."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.integration.kb.replying import Background, Replier

JSON_TYPE = "application/json; charset=UTF-8"
Fault = Callable[["Handler", bytes], None]


class Handler(Replier):
    content_type = JSON_TYPE
    server: EntityDataServer

    def do_GET(self) -> None:  # noqa: N802 - the base class calls it so
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


class EntityDataServer(Background):
    def __init__(self, documents: list[dict[str, Any]], redirects: list[tuple[str, str]] = []) -> None:  # noqa: B006
        super().__init__(Handler)
        self.documents = {one["id"]: one for one in documents}
        self.redirects = dict(redirects)
        self.faults: deque[Fault] = deque()
        self.requests: list[tuple[str, dict[str, str]]] = []

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
        return f"{self.root}/wiki/Special:EntityData"
