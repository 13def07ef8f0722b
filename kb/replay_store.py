"""The nights of a replay, each served by a real SPARQL server."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from kb.endpoint import Endpoint
from kb.feed import SparqlFeed
from kb.store import LocalStore

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from kb.replay import Round


class NightServer:
    """A context whose ``feed_of`` loads a night into a local store and gives a feed on it.

    Asking for the next night ends the server of the one before.
    """

    def __init__(self, folder: Path) -> None:
        """Prepare.

        Args:
            folder: for the store and the Turtle; made when missing.
        """
        self._folder = folder
        self._store = LocalStore(folder / "store")
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def feed_of(self, night: Round) -> SparqlFeed:
        """Serve a night.

        Raises:
            StoreError: the store could not load it or start.
        """
        self._stack.close()
        file = self._folder / f"night{night.number:03d}.ttl"
        file.write_text(night.turtle(), encoding="utf-8")
        self._store.load(file)
        file.unlink()
        url = self._stack.enter_context(self._store.serve())
        return SparqlFeed(Endpoint.local(url))
