"""One history of migrations, all or nothing, on both databases."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from storage import migrate
from storage.database import make_engine, parse_url, reading, writing
from storage.errors import LedgerNewerThanCodeError, LedgerOutdatedError, LedgerUrlError, MigrationError
from storage.ledger import Ledger
from storage.schema.base import Base
from tests.unit.storage import steps

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from storage.checkpoints import CheckpointFiles

REVISIONS = [
    script.revision
    for script in reversed(list(ScriptDirectory.from_config(migrate.config()).walk_revisions()))
]


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server = request.getfixturevalue("postgres")
    url = server.make(empty=True)
    yield url
    server.drop(url)


def shape(url: str) -> dict[str, list[str]]:
    """All tables, columns, constraints and views, by name."""
    engine = make_engine(parse_url(url))
    with reading(engine) as connection:
        found = inspect(connection)
        shape = {
            table: sorted(
                [
                    f"{column['name']} {column['type']} {column['nullable']}"
                    for column in found.get_columns(table)
                ]
                + [str(index["name"]) for index in found.get_indexes(table)]
                + [str(check["name"]) for check in found.get_check_constraints(table)]
                + [str(key["name"]) for key in found.get_foreign_keys(table)]
            )
            for table in found.get_table_names()
        }
        shape["views"] = sorted(found.get_view_names())
    engine.dispose()
    return shape


def test_the_migrated_schema_is_the_models(empty_url: str) -> None:
    migrate.upgrade(parse_url(empty_url))
    engine = make_engine(parse_url(empty_url))
    with reading(engine) as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        made = inspect(connection)
        for table in Base.metadata.tables.values():
            checks = {check["name"] for check in made.get_check_constraints(table.name)}
            assert checks == {c.name for c in table.constraints if type(c).__name__ == "CheckConstraint"}
    engine.dispose()


def test_every_constraint_has_a_name() -> None:
    unnamed = [
        (table.name, constraint)
        for table in Base.metadata.tables.values()
        for constraint in table.constraints
        if constraint.name is None
    ]
    assert unnamed == []


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_a_ledger_with_data_is_migrated_from_each_old_revision(
    empty_url: str, revision: str, files: CheckpointFiles
) -> None:
    migrate.upgrade(parse_url(empty_url), revision)
    engine = make_engine(parse_url(empty_url))
    with writing(engine) as connection:
        connection.execute(
            text(
                "INSERT INTO model (name, base_ref, base_digest, created_at)"
                " VALUES ('tiny', 'local', :digest, '2026-01-01T00:00:00.000000Z')"
            ),
            {"digest": steps.BASE},
        )
        connection.execute(
            text("INSERT INTO fact (subject, property, slot) VALUES ('Q1', 'P6', '')"),
        )
    engine.dispose()
    world = steps.World()
    world.set("Q1", "P6", "Q10")
    with Ledger.open(empty_url) as ledger:
        steps.sync(ledger, files, world, 1)
        assert steps.held(ledger) == world.values
        assert ledger.query("SELECT count(*) FROM fact").rows == ((1,),)


def test_a_migration_that_fails_half_way_leaves_the_ledger_as_it_was(empty_url: str) -> None:
    url = parse_url(empty_url)
    migrate.upgrade(url, REVISIONS[0])

    engine = make_engine(url)
    with writing(engine) as connection:
        # The last migration will find its table taken, after it has done something else.
        connection.execute(text("CREATE TABLE ledger_meta (mine integer)"))
    engine.dispose()
    before = shape(empty_url)
    with pytest.raises(MigrationError, match="restore a copy") as failed:
        Ledger.open(empty_url)
    assert "\n" not in str(failed.value)
    assert shape(empty_url) == before
    engine = make_engine(url)
    with writing(engine) as connection:
        connection.execute(text("DROP TABLE ledger_meta"))
    engine.dispose()
    Ledger.open(empty_url).close()
    assert "live_facts" in shape(empty_url)["views"]


def test_a_process_killed_in_a_migration_leaves_the_ledger_as_it_was(empty_url: str) -> None:
    url = parse_url(empty_url)
    migrate.upgrade(url, REVISIONS[0])
    before = shape(empty_url)
    child = os.fork()
    if child == 0:
        migrate.create_views = lambda _connection: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        migrate.upgrade(url)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert shape(empty_url) == before
    Ledger.open(empty_url).close()
    assert "ledger_meta" in shape(empty_url)


def test_a_ledger_of_a_newer_factsync_is_refused(ledger: Ledger) -> None:
    with writing(ledger.engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    url = ledger.url.render_as_string(hide_password=False)
    for allowed in (True, False):
        with pytest.raises(LedgerNewerThanCodeError, match="9999"):
            Ledger.open(url, migrate=allowed)


def test_an_old_ledger_is_not_migrated_unasked(empty_url: str) -> None:
    migrate.upgrade(parse_url(empty_url), REVISIONS[0])
    with pytest.raises(LedgerOutdatedError, match=REVISIONS[0]):
        Ledger.open(empty_url, migrate=False)
    Ledger.open(empty_url).close()
    Ledger.open(empty_url, migrate=False).close()


def test_changed_views_are_made_again(ledger: Ledger) -> None:
    with writing(ledger.engine) as connection:
        connection.execute(text("DROP VIEW provenance"))
        connection.execute(text("UPDATE ledger_meta SET value = 'older'"))
    Ledger.open(ledger.url.render_as_string(hide_password=False)).close()
    assert ledger.query("SELECT * FROM provenance").rows == ()


@pytest.mark.parametrize("url", ["mysql://host/db", "nonsense://x", "sqlite://", "sqlite:///:memory:", "://"])
def test_an_address_that_names_no_ledger_is_refused(url: str) -> None:
    with pytest.raises(LedgerUrlError):
        Ledger.open(url)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"not a database " * 1000)
    with pytest.raises(LedgerUrlError, match="not a healthy SQLite database"):
        Ledger.open(str(path))
