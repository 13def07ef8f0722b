"""Engines and transactions: the only home of what differs between SQLite and PostgreSQL when connecting.

SQLite: WAL, `synchronous=FULL`, foreign keys on, and `BEGIN IMMEDIATE` for every write, because a transaction
that reads first and writes later loses to "database is locked" without waiting.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from storage.errors import (
    DiskFullError,
    LedgerBusyError,
    LedgerConnectionLostError,
    LedgerError,
    LedgerReadOnlyError,
    LedgerUrlError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

logger = logging.getLogger(__name__)

_WRITE = "factsync_write"
_DISK_FULL = ("53100", "58030")
_READ_ONLY = ("25006", "42501")
_BUSY = ("55P03", "40001", "40P01")


def parse_url(url: str) -> URL:
    """Read a database address and settle on the drivers that the ledger is tested with.

    Args:
        url: An SQLAlchemy URL, or a path of a SQLite file.

    Returns:
        The URL, with `psycopg` as driver for PostgreSQL.

    Raises:
        LedgerUrlError: If it names no SQLite file and no PostgreSQL database.
    """
    try:
        parsed = make_url(url if "://" in url else f"sqlite:///{url}")
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise LedgerUrlError(
            "The ledger's address is not a database URL: use sqlite:///path/ledger.db or postgresql://host/db."
        ) from error
    if backend in {"postgresql", "postgres"}:
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise LedgerUrlError(f"A ledger lives in SQLite or PostgreSQL, not in {backend}: change its URL.")
    if not parsed.database or parsed.database == ":memory:":
        raise LedgerUrlError("A ledger needs a file: use sqlite:///path/ledger.db.")
    return parsed


def sqlite_path(url: URL) -> Path | None:
    """Give the file of a SQLite ledger, None for PostgreSQL."""
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def make_engine(url: URL, *, busy_timeout_s: float = 10.0, foreign_keys: bool = True) -> Engine:
    """Make an engine whose transactions are what the ledger needs.

    Args:
        url: A URL from `parse_url`.
        busy_timeout_s: How long a write waits for another writer.
        foreign_keys: Off only for migrations, which may rebuild tables.

    Returns:
        The engine.
    """
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": busy_timeout_s, "check_same_thread": False})
        _listen_sqlite(engine, busy_timeout_s=busy_timeout_s, foreign_keys=foreign_keys)
        return engine
    options = f"-c lock_timeout={int(busy_timeout_s * 1000)} -c timezone=UTC"
    return create_engine(url, pool_pre_ping=True, connect_args={"options": options})


def make_reader(url: URL, *, statement_timeout_s: float) -> Engine:
    """Make an engine that can only read, for the shell.

    Args:
        url: A URL from `parse_url`.
        statement_timeout_s: PostgreSQL stops a query after this long.

    Returns:
        The engine.
    """
    path = sqlite_path(url)
    if path is not None:
        quoted = str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")

        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(f"file:{quoted}?mode=ro", uri=True, check_same_thread=False)
            connection.execute("PRAGMA query_only=ON")
            return connection

        return create_engine("sqlite://", creator=connect, poolclass=NullPool)
    timeout_ms = int(statement_timeout_s * 1000)
    options = f"-c default_transaction_read_only=on -c statement_timeout={timeout_ms} -c timezone=UTC"
    # A prepared statement is one statement: nothing can end the read-only transaction and go on after it.
    connect_args = {"options": options, "prepare_threshold": 0}
    return create_engine(url, poolclass=NullPool, connect_args=connect_args)


def _listen_sqlite(engine: Engine, *, busy_timeout_s: float, foreign_keys: bool) -> None:
    def on_connect(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver must not begin by itself
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={int(busy_timeout_s * 1000)}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")
        cursor.execute("PRAGMA cache_size=-65536")
        cursor.close()

    def on_begin(connection: Connection) -> None:
        write = connection.get_execution_options().get(_WRITE, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that reads one state of the ledger, however many statements it takes.

    Raises:
        LedgerError: If the database fails; see `translate`.
    """
    # PostgreSQL by itself shows each statement the newest state; SQLite's transactions keep theirs.
    options = {} if engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    with (
        translated(),
        engine.connect().execution_options(**options) as connection,
        connection.begin(),
    ):
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that writes; it commits at the end of the block, or not at all.

    Raises:
        LedgerError: If the database fails; see `translate`.
    """
    with (
        translated(),
        engine.connect().execution_options(**{_WRITE: True}) as connection,
        connection.begin(),
    ):
        yield connection


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into the ledger's.

    Raises:
        LedgerError: In place of what the driver raised.
    """
    try:
        yield
    except (DBAPIError, sqlite3.Error, psycopg.Error) as error:
        known = translate(error)
        if known is None:
            raise
        raise known from error


def translate(error: DBAPIError | sqlite3.Error | psycopg.Error) -> LedgerError | None:
    """Say what a driver's error means for the ledger.

    Args:
        error: What SQLAlchemy raised, or the driver itself, which fills the staging tables.

    Returns:
        The ledger's error, None if it has no word for it (then it is a bug, and stays as it is).
    """
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        return _translate_sqlite(cause)
    return _translate_postgres(cause, lost=lost)


def _translate_postgres(cause: BaseException | None, *, lost: bool) -> LedgerError | None:
    state: str | None = getattr(cause, "sqlstate", None)
    if lost or (state or "").startswith(("08", "57P")):
        return LedgerConnectionLostError(
            "The connection to the ledger's database was lost; the step did not happen: run it again."
        )
    if state is None and "connection" in str(cause).lower():
        return LedgerConnectionLostError(
            "The ledger's database cannot be reached: start it, or check the ledger's URL, and run again."
        )
    words: dict[str, LedgerError] = {
        **dict.fromkeys(
            _DISK_FULL, DiskFullError("The ledger's database has no room left: free some space.")
        ),
        **dict.fromkeys(
            _READ_ONLY,
            LedgerReadOnlyError(
                "The ledger's database refuses to be written: check the role and the server."
            ),
        ),
        **dict.fromkeys(
            _BUSY,
            LedgerBusyError(
                "Another transaction kept the ledger locked; the step did not happen: run it again."
            ),
        ),
    }
    return words.get(state or "")


def _translate_sqlite(error: sqlite3.Error) -> LedgerError | None:
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return LedgerBusyError(
            "Another process kept the ledger file locked; the step did not happen: wait for it to finish."
        )
    if name.startswith("SQLITE_FULL") or name in {"SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE"}:
        return DiskFullError("No room left for the ledger file; the step did not happen: free some space.")
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return LedgerReadOnlyError(
            "The ledger file or its folder cannot be written: check their permissions and the disk."
        )
    if name.startswith("SQLITE_IOERR"):
        return DiskFullError(
            f"The ledger file could not be written ({name}): check the disk's room and health."
        )
    if name in {"SQLITE_NOTADB", "SQLITE_CORRUPT"}:
        return LedgerUrlError("The ledger file is not a healthy SQLite database: restore it from a copy.")
    return None


def raise_os_error(error: OSError, path: Path) -> None:
    """Turn a file system's refusal into the ledger's words.

    Args:
        error: What the system said.
        path: What was being written.

    Raises:
        DiskFullError: If there is no room.
        LedgerReadOnlyError: If it may not be written.
        OSError: Anything else, as it was.
    """
    if error.errno in {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}:
        raise DiskFullError(f"No room left to write {path.name}: free some space and run again.") from error
    if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
        raise LedgerReadOnlyError(f"{path} cannot be written: check its permissions.") from error
    raise error


def insert_or_ignore(connection: Connection, table: Any) -> Any:  # noqa: ANN401  either dialect's insert
    """Make an INSERT that leaves rows alone that are there already."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table).on_conflict_do_nothing()
