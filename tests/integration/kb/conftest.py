from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest

from kb.endpoint import Endpoint
from kb.feed import SparqlFeed
from kb.store import LocalStore
from tests.integration.kb import nightly
from tests.integration.kb.fault_server import FaultServer


@pytest.fixture
def served(tmp_path):
    """A function that serves N-Triples or Turtle from a real SPARQL server: a context that gives its URL."""
    counter = iter(range(1000))

    @contextmanager
    def serve(text: str, **options):
        folder = tmp_path / f"served{next(counter)}"
        folder.mkdir()
        file = folder / "content.ttl"
        file.write_text(text, encoding="utf-8")
        store = LocalStore(folder / "store")
        store.load(file, lenient=True)
        with store.serve(**options) as url:
            yield url

    return serve


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """A real SPARQL server with the items of a nightly pull."""
    folder = tmp_path_factory.mktemp("upstream")
    file = folder / "content.nt"
    file.write_text(nightly.content(), encoding="utf-8")
    store = LocalStore(folder / "store")
    store.load(file)
    with store.serve() as url:
        yield url


@pytest.fixture
def server(upstream):
    """What stands before it and misbehaves on command."""
    with FaultServer(upstream) as running:
        yield running


@pytest.fixture
def fake():
    """A clock on which waiting takes no time."""
    return nightly.FakeTime()


@pytest.fixture
def feed(server, fake):
    """A feed that asks the server and gives up early."""
    endpoint = replace(Endpoint.local(server.url), timeout_s=2.0, max_attempts=3, max_wait_s=60.0, parallel=1)
    return SparqlFeed(endpoint, clock=fake.clock)
