"""Disks that fill up or refuse, databases that are locked or go away: clear words, nothing half-done."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import stat
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from storage import doctor
from storage.checkpoints import CheckpointFiles
from storage.errors import (
    DiskFullError,
    LedgerBusyError,
    LedgerConnectionLostError,
    LedgerError,
    LedgerReadOnlyError,
    TransientLedgerError,
)
from storage.ledger import Ledger
from storage.records.pulled import EntityRow
from tests.integration.storage.killing import in_child
from tests.unit.storage import steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.unit.storage.databases import Postgres


@pytest.fixture
def world() -> steps.World:
    world = steps.World()
    for number in range(1, 6):
        world.set(f"Q{number}", "P6", f"Q{100 + number}")
    return world


def healthy(ledger: Ledger, files: CheckpointFiles) -> bool:
    with ledger.writer(steps.MODEL, holder="a doctor") as lease:
        ledger.recover(lease, files)
    return doctor.examine(ledger, ledger.model(steps.MODEL), files).healthy


def limit_files(size_bytes: int) -> None:
    """From here on no file of this process may grow past a size: the nearest thing to a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))


def in_child_raising(work: Callable[[], object], error: type[LedgerError]) -> None:
    """Run something in a process of its own that must raise an error of ours."""

    def expect() -> None:
        with pytest.raises(error):
            work()

    assert in_child(expect) == 0


def test_a_disk_full_in_the_middle_of_a_delta_file(
    ledger: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    steps.sync(ledger, files, world, 1)
    before = files.digests()

    def write_much() -> None:
        limit_files(1_000_000)
        files.put({"delta.safetensors": b"d" * 4_000_000}, {})

    in_child_raising(write_much, DiskFullError)
    assert files.digests() == before
    assert files.orphans(before) == []


def test_a_disk_full_in_the_middle_of_a_transaction(
    tmp_path: Path, files: CheckpointFiles, world: steps.World
) -> None:
    """SQLite at every size of its log from none to enough: refused whole, or done whole."""
    path = tmp_path / "ledger.db"
    url = f"sqlite:///{path}"
    with Ledger.open(url) as ledger:
        steps.sync(ledger, files, world, 1)
    held = dict(world.values)
    for number in range(1, 40):
        world.set(f"Q{number}", "P6", f"Q{2000 + number}")

    def sync() -> None:
        with Ledger.open(url) as mine:
            steps.sync(mine, files, world, 2)

    refused = 0
    for room in (20_000, 60_000, 120_000, 200_000, 300_000, 450_000, 4_000_000):

        def with_little_room(room: int = room) -> None:
            limit_files(room)
            sync()

        def expect() -> None:
            try:
                with_little_room()
            except DiskFullError:
                os._exit(7)

        code = in_child(expect)
        refused += code == 7
        assert code in {0, 7}
        with Ledger.open(url) as ledger:
            assert steps.held(ledger) in (held, world.values)
            assert healthy(ledger, files)
    assert refused >= 3
    sync()
    with Ledger.open(url) as ledger:
        assert steps.held(ledger) == world.values


def test_a_locked_database_is_waited_for_and_then_named(
    tmp_path: Path, files: CheckpointFiles, world: steps.World
) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(str(path), busy_timeout_s=0.2) as ledger:
        steps.sync(ledger, files, world, 1)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        world.set("Q1", "P6", "Q999")
        with pytest.raises(LedgerBusyError) as refusal:
            steps.sync(ledger, files, world, 2)
        assert isinstance(refusal.value, TransientLedgerError)
        assert steps.held(ledger)["Q1", "P6"] == "Q101"
        other.execute("ROLLBACK")
        other.close()
        steps.sync(ledger, files, world, 2)
        assert steps.held(ledger) == world.values


def test_a_locked_row_on_postgresql_is_waited_for_and_then_named(
    postgres: Postgres, files: CheckpointFiles, world: steps.World
) -> None:
    url = postgres.make()
    with Ledger.open(url, busy_timeout_s=0.3) as ledger:
        steps.sync(ledger, files, world, 1)
        other = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
        with other.connect() as connection, connection.begin():
            connection.execute(text("SELECT * FROM model FOR UPDATE"))
            with pytest.raises(LedgerBusyError):
                steps.sync(ledger, files, world, 2)
        other.dispose()
        steps.sync(ledger, files, world, 2)
    postgres.drop(url)


@pytest.mark.parametrize(
    "step", ["ingest.staged", "record_plan.changes", "promote.head", "promote.before_commit"]
)
def test_a_dropped_connection_is_a_step_that_did_not_happen(
    postgres: Postgres, files: CheckpointFiles, world: steps.World, step: str
) -> None:
    """The server ends our sessions in the middle of a transaction; the run is lost, the ledger is not."""
    url = postgres.make()
    database = make_url(url).database
    cut = []

    def cut_once(name: str) -> None:
        if name == step and not cut:
            cut.append(name)
            postgres.cut(str(database))

    with Ledger.open(url, on_point=cut_once) as ledger:
        with pytest.raises(LedgerConnectionLostError):
            steps.sync(ledger, files, world, 1)
        steps.sync(ledger, files, world, 1)
        assert steps.held(ledger) == world.values
        assert healthy(ledger, files)
        attempts = ledger.query("SELECT state FROM sync_runs ORDER BY run_id").rows
        assert [row[0] for row in attempts] == ["crashed", "succeeded"]
    postgres.drop(url)


@pytest.mark.parametrize("rows_before", [0, 20_000])
def test_a_connection_dropped_in_the_middle_of_a_pull_is_a_pull_that_did_not_happen(
    postgres: Postgres, files: CheckpointFiles, world: steps.World, rows_before: int
) -> None:
    """The server ends our session while rows stream into the staging table."""
    url = postgres.make()
    database = str(make_url(url).database)

    def cut_while_streaming() -> Iterator[EntityRow]:
        for number in range(rows_before):
            yield EntityRow(f"Q{10_000 + number}", label=f"label {number}")
        postgres.cut(database)
        for number in range(20_000):
            yield EntityRow(f"Q{50_000 + number}", label=f"label {number}")

    with Ledger.open(url) as ledger:
        steps.sync(ledger, files, world, 1)
        with ledger.writer(steps.MODEL, holder="a test") as lease:
            run = ledger.begin_run(lease, "sync", reference_time=steps.night(2))
            with pytest.raises(LedgerConnectionLostError):
                ledger.ingest(
                    lease,
                    run,
                    source=steps.SOURCE,
                    cursor_to=steps.night(2),
                    entities=cut_while_streaming(),
                    statements=(),
                    pulled_groups=(),
                )
        assert ledger.cursor(steps.SOURCE) == steps.night(1)
        assert ledger.labels(["Q10000"]) == {}
        steps.sync(ledger, files, world, 2)
        assert healthy(ledger, files)
    postgres.drop(url)


def test_a_database_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(LedgerConnectionLostError) as refusal:
        Ledger.open(f"postgresql://someone:secret@/nothing?host={tmp_path}")
    assert "secret" not in str(refusal.value)


def as_nobody(work: Callable[[], None]) -> Callable[[], None]:
    """Give up root's rights first: root may write anywhere."""

    def run() -> None:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        work()

    return run


@pytest.fixture
def read_only(tmp_path: Path, world: steps.World) -> Path:
    """A home that nobody may write: a ledger at rest, and checkpoints."""
    home = tmp_path / "home"
    with Ledger.open(str(home / "ledger.db")) as ledger:
        steps.sync(ledger, CheckpointFiles(home / "checkpoints"), world, 1)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & stat.S_IXOTH:
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    for entry in [home, *home.rglob("*")]:
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    return home


def test_a_read_only_folder_refuses_with_clear_words(read_only: Path, world: steps.World) -> None:
    def write_ledger() -> None:
        with Ledger.open(str(read_only / "ledger.db")) as ledger:
            ledger.ensure_model("another", "local", steps.BASE)

    def lock() -> None:
        with Ledger.open(str(read_only / "ledger.db")) as ledger, ledger.writer(steps.MODEL, holder="x"):
            pass

    def put() -> None:
        CheckpointFiles(read_only / "checkpoints").put({"delta.safetensors": b"d"}, {})

    def make() -> None:
        Ledger.open(str(read_only / "deeper" / "ledger.db"))

    for work in (write_ledger, lock, put, make):
        in_child_raising(as_nobody(work), LedgerReadOnlyError)


def test_a_killed_writer_leaves_a_log_that_the_next_reader_recovers(
    tmp_path: Path, files: CheckpointFiles, world: steps.World
) -> None:
    path = tmp_path / "ledger.db"

    def sync_and_die() -> None:
        ledger = Ledger.open(str(path))
        steps.sync(ledger, files, world, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(sync_and_die) == -signal.SIGKILL
    assert path.with_name("ledger.db-wal").stat().st_size > 0
    with Ledger.open(str(path)) as ledger:
        assert steps.held(ledger) == world.values


def test_a_clock_that_runs_backwards_between_nights(
    ledger_url: str, files: CheckpointFiles, world: steps.World
) -> None:
    """Cursors come from the source, order from keys: the wall clock only decorates."""
    clock = {"now": steps.night(100)}
    with Ledger.open(ledger_url, clock=lambda: clock["now"]) as ledger:
        for number, value in enumerate(("Q11", "Q12", "Q13", "Q14"), start=1):
            clock["now"] = steps.night(100 - 10 * number)
            world.set("Q1", "P6", value)
            steps.sync(ledger, files, world, number)
            assert steps.held(ledger) == world.values
            assert ledger.cursor(steps.SOURCE) == steps.night(number)
        history = ledger.query(
            "SELECT target, held_from <= COALESCE(held_to, held_from) FROM fact_history"
            " WHERE subject = 'Q1' ORDER BY edit_id"
        ).rows
        assert [row[0] for row in history] == [f"label {value}" for value in ("Q11", "Q12", "Q13", "Q14")]
        assert all(row[1] for row in history)
        model = ledger.model(steps.MODEL)
        assert doctor.examine(ledger, model, files, now=steps.night(100)).healthy
