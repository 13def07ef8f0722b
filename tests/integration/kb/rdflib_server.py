"""A second SPARQL engine behind HTTP: rdflib, slow and by the book. What both answer alike is portable."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs

from rdflib import Graph


class Handler(BaseHTTPRequestHandler):
    server: RdflibServer

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        with self.server.lock:
            reply = self.server.graph.query(form["query"][0]).serialize(format="json")
        self.send_response(200)
        self.send_header("Content-Type", "application/sparql-results+json")
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_args: Any) -> None:
        pass


class RdflibServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, text: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.graph = Graph().parse(data=text, format="turtle")
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/sparql"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.shutdown()
        self.server_close()
