"""How far a long step has come, as log records: whoever shows progress attaches a handler.

Packages report through a callback `(stage, done, total)`; this one turns it into records of one logger, so
that the command line can draw a bar and a server can log lines without the steps knowing either.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from editor.progress import Progress

LOGGER = "factsync.progress"

TITLES = {
    "sample": "writing text for the second moments",
    "moments": "measuring second moments",
    "targets": "finding target states",
    "write": "writing weights",
    "refine": "refining what was written",
    "recall": "asking the model",
    "pull": "fetching items",
    "batches": "batches",
    "trace": "tracing",
    "trials": "trying settings",
}


def report(stage: str, done: int, total: int) -> None:
    """Say how far a stage has come."""
    logging.getLogger(LOGGER).info(
        "%s: %d of %d", stage, done, total, extra={"progress": (stage, done, total)}
    )


def say(text: str) -> None:
    """Say which step has begun."""
    logging.getLogger(LOGGER).info("%s", text, extra={"step": text})


class _Handler(logging.Handler):
    def __init__(self, on_progress: Progress, on_step: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._on_progress, self._on_step = on_progress, on_step

    def emit(self, record: logging.LogRecord) -> None:
        progress = getattr(record, "progress", None)
        step = getattr(record, "step", None)
        if progress is not None:
            self._on_progress(*progress)
        elif step is not None:
            self._on_step(step)


@contextmanager
def shown_by(on_progress: Progress, on_step: Callable[[str], None]) -> Iterator[None]:
    """Hand every report inside the block to these."""
    logger = logging.getLogger(LOGGER)
    handler = _Handler(on_progress, on_step)
    before = (logger.level, logger.propagate)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
