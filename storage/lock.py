"""One writer a model: a lock that the system frees when its holder dies, and a fencing epoch for late wakers.

SQLite: `flock` on a file beside the ledger. PostgreSQL: a session advisory lock on its own connection (so do
not put a pooler in transaction mode between). Either is free at once when the holder is killed.
"""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from storage.database import raise_os_error, sqlite_path, translated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy.engine import Engine

_ADVISORY_CLASS = 0x66616374  # "fact"
_KEYS = "CAST(:class AS int), CAST(:model AS int)"


@contextmanager
def exclusive(engine: Engine, model_id: int, model_name: str) -> Iterator[bool]:
    """Try to be the only writer of a model while the block runs.

    Args:
        engine: The ledger's engine.
        model_id: Key of the model.
        model_name: Its name, for the lock file.

    Yields:
        True if the lock was free; False if somebody else holds it, and then nothing is held.

    Raises:
        LedgerReadOnlyError: If the lock file cannot be made.
    """
    path = sqlite_path(engine.url)
    if path is None:
        with _advisory(engine, model_id) as free:
            yield free
    else:
        # One lock a file, under whatever name or link it was opened.
        with _flock(path.resolve(), model_name) as free:
            yield free


@contextmanager
def _flock(ledger: Path, model_name: str) -> Iterator[bool]:
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", model_name)
    path = ledger.with_name(f"{ledger.name}.{safe}.lock")
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise_os_error(error, path)
        raise
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        # Closing frees the lock. The file stays: removing it would let two writers lock two files of one
        # name.
        os.close(handle)


@contextmanager
def _advisory(engine: Engine, model_id: int) -> Iterator[bool]:
    keys = {"class": _ADVISORY_CLASS, "model": model_id}
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    free = False
    try:
        with translated():
            free = bool(connection.scalar(text(f"SELECT pg_try_advisory_lock({_KEYS})"), keys))
        yield free
    finally:
        if free:
            # Said aloud, because the server notices a closed connection a moment later than the next writer
            # asks.
            with suppress(DBAPIError):
                connection.execute(text(f"SELECT pg_advisory_unlock({_KEYS})"), keys)
        # Never back into the pool: a session that might hold the lock ends with its connection.
        connection.invalidate()
        connection.close()
