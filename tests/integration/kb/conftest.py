from __future__ import annotations

from contextlib import contextmanager

import pytest

from kb.store import LocalStore


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
