"""Bring a ledger to the code's schema: drop the views, migrate, create the views, in one transaction."""

from __future__ import annotations

import hashlib
import logging
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import delete, insert, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError

from storage.database import make_engine, writing
from storage.errors import LedgerError, LedgerNewerThanCodeError, LedgerOutdatedError, MigrationError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Connection
from storage.schema.runs import LedgerMeta

logger = logging.getLogger(__name__)

_MIGRATION_LOCK = 0x66616374_6D696772
_VIEWS = "views"
_VIEW = re.compile(r"CREATE VIEW (\w+) AS\b.*?;", re.DOTALL)


@cache
def views() -> dict[str, str]:
    """Read the public views: name to statement, in the file's order."""
    source = resources.files("storage").joinpath("views.sql").read_text(encoding="utf-8")
    return {match.group(1): match.group(0).rstrip(";") for match in _VIEW.finditer(source)}


def config(connection: Connection | None = None) -> Config:
    """Make Alembic's configuration; nothing is read from an ini file."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


def code_revision() -> str:
    """Give the newest revision this code knows."""
    head = ScriptDirectory.from_config(config()).get_current_head()
    if head is None:
        raise MigrationError("This installation carries no migrations: install factsync again.")
    return head


def database_revision(connection: Connection) -> str | None:
    """Give the revision of the database, None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def check(connection: Connection) -> bool:
    """Compare the database with the code.

    Returns:
        True if the schema and the views are the code's, False if they must be migrated.

    Raises:
        LedgerNewerThanCodeError: If the database knows more than the code.
    """
    found = database_revision(connection)
    if found is None:
        return False
    try:
        ScriptDirectory.from_config(config()).get_revision(found)
    except CommandError as error:
        raise LedgerNewerThanCodeError(found) from error
    return found == code_revision() and views_current(connection)


def refuse_outdated(connection: Connection) -> None:
    """Refuse a database that is behind.

    Raises:
        LedgerOutdatedError: If it is.
        LedgerNewerThanCodeError: If it is ahead.
    """
    if not check(connection):
        raise LedgerOutdatedError(database_revision(connection), code_revision())


def upgrade(url: URL, revision: str = "head") -> None:
    """Migrate, all or nothing, while no other process does.

    Args:
        url: The database.
        revision: Where to; tests stop at older ones.

    Raises:
        MigrationError: If a step failed; the database is as before.
        LedgerNewerThanCodeError: If the database knows more than the code.
    """
    # Rebuilding a table on SQLite needs foreign keys off, which only works outside a transaction;
    # they are checked by hand before the commit.
    engine = make_engine(url, busy_timeout_s=60.0, foreign_keys=False)
    try:
        with writing(engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            if revision == "head" and check(connection):
                return
            drop_views(connection)
            command.upgrade(config(connection), revision)
            if revision == "head":
                create_views(connection)
            if connection.dialect.name == "sqlite":
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
                if broken:
                    raise MigrationError(
                        f"A migration would break {len(broken)} references; nothing was changed."
                    )
    except LedgerError:
        raise
    except (SQLAlchemyError, CommandError) as error:
        # SQLAlchemy adds the statement and a link, in lines of their own.
        said = str(getattr(error, "orig", None) or error).partition("\n")[0]
        raise MigrationError(
            f"The ledger could not be migrated and is as before ({said}): name another file in "
            "FACTSYNC_LEDGER_URL, or restore a copy."
        ) from error
    finally:
        engine.dispose()


def drop_views(connection: Connection) -> None:
    """Drop the public views: a table named by a view cannot be rebuilt."""
    for name in reversed(views()):
        connection.exec_driver_sql(f"DROP VIEW IF EXISTS {name}")


def create_views(connection: Connection) -> None:
    """Create the public views, and remember which text they came from."""
    for statement in views().values():
        connection.exec_driver_sql(statement)
    connection.execute(delete(LedgerMeta).where(LedgerMeta.name == _VIEWS))
    connection.execute(insert(LedgerMeta).values(name=_VIEWS, value=_views_digest()))


def missing_views(connection: Connection) -> list[str]:
    """List the public views that the database lacks, by name."""
    return sorted(set(views()) - set(inspect(connection).get_view_names()))


def views_current(connection: Connection) -> bool:
    """Say whether the views that stand were made from this code's text."""
    said = connection.scalars(select(LedgerMeta.value).where(LedgerMeta.name == _VIEWS)).one_or_none()
    return said == _views_digest()


def _views_digest() -> str:
    return hashlib.sha256("\n".join(views().values()).encode()).hexdigest()
