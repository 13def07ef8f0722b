"""A second SPARQL engine behind HTTP: rdflib, slow and by the book. What both answer alike is portable."""

from __future__ import annotations

from urllib.parse import parse_qs

from rdflib import Graph

from tests.integration.kb.replying import Background, Replier


class Handler(Replier):
    content_type = "application/sparql-results+json"
    server: RdflibServer

    def do_POST(self) -> None:  # noqa: N802 - the base class calls it so
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        with self.server.lock:
            reply = self.server.graph.query(form["query"][0]).serialize(format="json")
        self.send(200, reply)


class RdflibServer(Background):
    def __init__(self, text: str) -> None:
        super().__init__(Handler)
        self.graph = Graph().parse(data=text, format="turtle")
        self.url = f"{self.root}/sparql"
