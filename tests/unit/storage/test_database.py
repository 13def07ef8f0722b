"""What differs between the databases, and the words for what goes wrong with them."""

from __future__ import annotations

import errno
import sqlite3
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Column, MetaData, Table, insert, select, text
from sqlalchemy.exc import DBAPIError, StatementError

from storage import errors
from storage.database import make_engine, parse_url, raise_os_error, reading, translate, writing
from storage.types import Doc, Flag, Moment, dump, to_text

if TYPE_CHECKING:
    from storage.ledger import Ledger

POSTGRES = {
    "53100": errors.DiskFullError,
    "25006": errors.LedgerReadOnlyError,
    "42501": errors.LedgerReadOnlyError,
    "55P03": errors.LedgerBusyError,
    "40P01": errors.LedgerBusyError,
    "08006": errors.LedgerConnectionLostError,
    "57P01": errors.LedgerConnectionLostError,
    "42703": None,
}
SQLITE = {
    "SQLITE_BUSY": errors.LedgerBusyError,
    "SQLITE_BUSY_SNAPSHOT": errors.LedgerBusyError,
    "SQLITE_FULL": errors.DiskFullError,
    "SQLITE_IOERR_WRITE": errors.DiskFullError,
    "SQLITE_READONLY": errors.LedgerReadOnlyError,
    "SQLITE_READONLY_DIRECTORY": errors.LedgerReadOnlyError,
    "SQLITE_CANTOPEN": errors.LedgerReadOnlyError,
    "SQLITE_NOTADB": errors.LedgerUrlError,
    "SQLITE_CONSTRAINT_UNIQUE": None,
}


@pytest.mark.parametrize(("state", "kind"), POSTGRES.items())
def test_postgresql_says_what_went_wrong(state: str, kind: type[Exception] | None) -> None:
    raised = psycopg.Error("said by the server")
    raised.sqlstate = state
    found = translate(DBAPIError("SELECT 1", {}, raised))
    assert found is None if kind is None else type(found) is kind


@pytest.mark.parametrize(("name", "kind"), SQLITE.items())
def test_sqlite_says_what_went_wrong(name: str, kind: type[Exception] | None) -> None:
    raised = sqlite3.OperationalError("said by the library")
    raised.sqlite_errorname = name
    found = translate(DBAPIError("SELECT 1", {}, raised))
    assert found is None if kind is None else type(found) is kind


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, errors.DiskFullError),
        (errno.EDQUOT, errors.DiskFullError),
        (errno.EROFS, errors.LedgerReadOnlyError),
        (errno.EACCES, errors.LedgerReadOnlyError),
        (errno.EIO, OSError),
    ],
)
def test_the_file_system_says_what_went_wrong(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        raise_os_error(OSError(number, "said by the system"), Path("delta.safetensors"))


def test_only_what_may_succeed_again_is_transient() -> None:
    transient = {
        name for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.TransientLedgerError)
    }  # fmt: skip
    assert transient == {"TransientLedgerError", "LedgerBusyError", "LedgerConnectionLostError"}
    assert all(
        issubclass(kind, errors.LedgerError)
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and name.endswith("Error")
    )


def test_sqlite_is_opened_safely(tmp_path: Path) -> None:
    engine = make_engine(parse_url(str(tmp_path / "ledger.db")), busy_timeout_s=3)
    with reading(engine) as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
        }
    engine.dispose()
    assert found == {"journal_mode": "wal", "foreign_keys": 1, "synchronous": 2, "busy_timeout": 3000}


def test_constraints_stand_in_the_database(ledger: Ledger) -> None:
    """Not in hope: the database itself refuses."""
    ledger.ensure_model("m", "x", "0" * 64)
    day = "'2026-01-01T00:00:00.000000Z'"
    run = (
        "INSERT INTO sync_run (id, model_id, kind, reference_time, params, state, epoch, counters,"
        " started_at)"
        f" VALUES (1, 1, 'sync', {day}, '{{}}', 'running', 1, '{{}}', {day})"
    )
    columns = (
        "model_id, run_id, state, digest, files, algorithm, settings, metrics, from_base, depth, edits,"
        " epoch, created_at"
    )

    def write(*statements: str) -> None:
        with writing(ledger.engine) as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def checkpoint(state: str, digest: str | None) -> str:
        said = "NULL" if digest is None else f"'{digest}'"
        return (
            f"INSERT INTO checkpoint ({columns}) VALUES (1, 1, '{state}', {said}, '{{}}', 'memit', '{{}}',"
            f" '{{}}', false, 0, 0, 1, {day})"
        )

    write(run)
    for first, second in (
        (checkpoint("building", None), checkpoint("candidate", "a")),
        (checkpoint("promoted", "a"), checkpoint("promoted", "b")),
        (checkpoint("superseded", "a"), checkpoint("promoted", "a")),
        ("SELECT 1", checkpoint("promoted", None)),
        ("SELECT 1", checkpoint("unheard of", "a")),
        ("SELECT 1", checkpoint("building", None).replace("(1, 1,", "(77, 1,")),
        ("SELECT 1", run.replace("(1, 1, 'sync'", "(2, 1, 'sync'").replace("'running'", "'succeeded'")),
    ):
        with pytest.raises(DBAPIError):
            write(first, second)


PROBE = Table("probe", MetaData(), Column("at", Moment), Column("doc", Doc), Column("flag", Flag))


def test_types_come_back_as_they_went(ledger: Ledger) -> None:
    at = datetime(2026, 3, 29, 3, 30, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    rows = [(at, {"b": [1, None], "a": "ü"}, True), (None, None, None), (at, [], False)]
    with writing(ledger.engine) as connection:
        PROBE.create(connection)
        connection.execute(
            insert(PROBE), [dict(zip(("at", "doc", "flag"), row, strict=True)) for row in rows]
        )
        back = [tuple(row) for row in connection.execute(select(PROBE))]
        flagged = connection.scalar(text("SELECT count(*) FROM probe WHERE flag"))
    assert back == rows
    assert back[0][0].tzinfo is UTC
    assert flagged == 1


def test_a_moment_without_a_zone_is_refused(ledger: Ledger) -> None:
    with writing(ledger.engine) as connection:
        PROBE.create(connection)
        with pytest.raises(StatementError, match="without a time zone"):
            connection.execute(insert(PROBE), {"at": datetime(2026, 1, 1)})  # noqa: DTZ001  that is the point


MOMENTS = st.datetimes(datetime(1000, 1, 3), datetime(9999, 12, 29), timezones=st.timezones())  # noqa: DTZ001


@given(MOMENTS, MOMENTS)
def test_moments_written_as_text_sort_as_time_does(one: datetime, other: datetime) -> None:
    assert (to_text(one) < to_text(other)) == (one.astimezone(UTC) < other.astimezone(UTC))


def test_documents_are_canonical() -> None:
    assert dump({"b": 1, "a": [True, None]}) == dump({"a": [True, None], "b": 1}) == '{"a":[true,null],"b":1}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump({"a": float("nan")})
