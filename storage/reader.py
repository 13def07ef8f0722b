"""The ledger's questions: what the program reads, in short transactions that never block a writer."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from storage import facts, held_back, queue, reading, retention, review, shell
from storage import migrate as migration
from storage.crash import OnPoint, silent
from storage.database import make_engine, parse_url, raise_os_error, sqlite_path
from storage.database import reading as read_transaction
from storage.head import walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from sqlalchemy.engine import URL, Engine

    from storage.records import Pair, Source
    from storage.records.checkpoints import CheckpointRow
    from storage.records.facts import HeldRow, HistoryRow, SubjectStateRow
    from storage.records.planned import EditRequestRow, Group, PendingRow
    from storage.records.pulled import EntityRow
    from storage.records.runs import Model, Status
    from storage.shell import QueryResult


def _utc_now() -> datetime:
    return datetime.now(UTC)


class LedgerReader:
    """The reading half of the ledger; see `storage.ledger.Ledger`.

    Attributes:
        url: Where it lives.
        engine: Its engine, for tests and tools.
    """

    def __init__(self, url: URL, engine: Engine, clock: Callable[[], datetime], on_point: OnPoint) -> None:
        self.url = url
        self.engine = engine
        self._clock = clock
        self._point = on_point

    @classmethod
    def open(
        cls,
        url: str,
        *,
        migrate: bool = True,
        busy_timeout_s: float = 10.0,
        clock: Callable[[], datetime] = _utc_now,
        on_point: OnPoint = silent,
    ) -> Self:
        """Open a ledger, making or migrating it if need be.

        Args:
            url: `sqlite:///path/ledger.db` (or a bare path), or `postgresql://...`.
            migrate: False refuses a database whose schema is not this code's.
            busy_timeout_s: How long a step waits for another writer's transaction.
            clock: The time, for tests.
            on_point: Called at each named point of `storage.crash`.

        Returns:
            The ledger.

        Raises:
            LedgerUrlError: If the address names no ledger.
            LedgerNewerThanCodeError: If a newer factsync migrated it.
            LedgerOutdatedError: If it must be migrated and may not.
            MigrationError: If migrating failed; the database is as before.
        """
        parsed = parse_url(url)
        path = sqlite_path(parsed)
        if path is not None and migrate:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise_os_error(error, path.parent)
        engine = make_engine(parsed, busy_timeout_s=busy_timeout_s)
        ledger = cls(parsed, engine, clock, on_point)
        with read_transaction(engine) as connection:
            current = migration.check(connection)
            if not current and not migrate:
                migration.refuse_outdated(connection)
        if not current:
            engine.dispose()
            migration.upgrade(parsed)
        return ledger

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def model(self, name: str) -> Model:
        """Read a model.

        Raises:
            UnknownModelError: If there is none of this name.
        """
        with read_transaction(self.engine) as connection:
            return reading.model_named(connection, name)

    def models(self) -> list[Model]:
        """Read all models, by name."""
        with read_transaction(self.engine) as connection:
            return reading.models(connection)

    def cursor(self, source: str) -> datetime | None:
        """Say how far a source was read, None if never."""
        with read_transaction(self.engine) as connection:
            return reading.cursor(connection, source)

    def read_last(self, model_name: str) -> frozenset[str] | None:
        """Say for which relations a model's last sync read items; None if it has not synced.

        Args:
            model_name: The model; one that the ledger does not know has never read.
        """
        with read_transaction(self.engine) as connection:
            return reading.read_last(connection, model_name)

    def read_beside(self, model_name: str) -> frozenset[str] | None:
        """Say for which relations items were read since, or beside, a model's last sync; None if none were.

        Args:
            model_name: The model; one that the ledger does not know has never read.
        """
        with read_transaction(self.engine) as connection:
            return reading.read_beside(connection, model_name)

    def tracked(self, properties: Iterable[str] | None = None) -> list[EntityRow]:
        """Read the items that are followed, with their last known revision, modification and redirect.

        Args:
            properties: Only items with current statements of these relations.
        """
        with read_transaction(self.engine) as connection:
            return reading.tracked(connection, properties)

    def labels(self, ids: Iterable[str]) -> dict[str, EntityRow]:
        """Read what is known of some items, by id; unknown ones are left out."""
        with read_transaction(self.engine) as connection:
            return review.entity_rows(connection, set(ids))

    def pairs_to_review(self, model: Model) -> set[Pair]:
        """List the (subject, property) of the groups that changed and of those in which something waits."""
        with read_transaction(self.engine) as connection:
            return review.pairs_to_review(connection, model.id)

    def groups(
        self,
        model: Model,
        pairs: Iterable[Pair],
        *,
        page_size: int = 500,
        gone_since: datetime | None = None,
    ) -> Iterator[Group]:
        """Yield the named groups, known or not, with all that a plan needs of them, by (subject, property).

        Args:
            model: The model.
            pairs: The (subject, property) of each group.
            page_size: Groups a page; each page is one short read of a few queries.
            gone_since: Also read which values went since then, to know one that comes back.
        """
        return review.groups(self.engine, model.id, pairs, page_size, gone_since)

    def owed(self, model: Model) -> list[EditRequestRow]:
        """Read the pending requests, oldest first."""
        with read_transaction(self.engine) as connection:
            return queue.owed(connection, model.id)

    def claimed(self, checkpoint: int) -> list[EditRequestRow]:
        """Read the requests that an open checkpoint (by key) carries, oldest first."""
        with read_transaction(self.engine) as connection:
            return queue.claimed(connection, checkpoint)

    def pending(self, model: Model) -> list[PendingRow]:
        """Read what is held back."""
        with read_transaction(self.engine) as connection:
            return list(held_back.pending_rows(connection, model.id, None))

    def head(self, model: Model) -> CheckpointRow | None:
        """Read the live checkpoint, None while the base itself is live."""
        with read_transaction(self.engine) as connection:
            current = reading.model_named(connection, model.name)
            return None if current.head is None else reading.checkpoint(connection, model.id, current.head)

    def head_at(self, model: Model, at: datetime) -> CheckpointRow | None:
        """Read the checkpoint that was live at a moment, None for the base."""
        with read_transaction(self.engine) as connection:
            head = reading.head_at(connection, model.id, at)
            return None if head is None else reading.checkpoint(connection, model.id, head)

    def checkpoint(self, model: Model, which: int | str) -> CheckpointRow:
        """Read a checkpoint by key, digest, or the beginning of its digest.

        Raises:
            UnknownCheckpointError: If none fits, or several do.
        """
        with read_transaction(self.engine) as connection:
            return reading.checkpoint(connection, model.id, which)

    def checkpoints(self, model: Model) -> list[CheckpointRow]:
        """Read all checkpoints, oldest first."""
        with read_transaction(self.engine) as connection:
            return reading.checkpoints(connection, model.id)

    def undone(self, model: Model) -> dict[int, tuple[datetime, str]]:
        """Say when and why a rollback last took each checkpoint off the lineage, by its key."""
        with read_transaction(self.engine) as connection:
            return reading.undone(connection, model.id)

    def lineage(self, model: Model, checkpoint: int | None = None) -> list[CheckpointRow]:
        """Read a checkpoint (the head, unless named) and its ancestors, root first."""
        with read_transaction(self.engine) as connection:
            start = reading.model_named(connection, model.name).head if checkpoint is None else checkpoint
            return reading.lineage(connection, model.id, start)

    def live_facts(
        self, model: Model, *, subjects: Iterable[str] | None = None, checkpoint: int | None = None
    ) -> list[HeldRow]:
        """Read what the model holds, now or at a checkpoint, of all subjects or of some."""
        with read_transaction(self.engine) as connection:
            line = None if checkpoint is None else walk(connection, checkpoint)
            return list(facts.held_rows(connection, model.id, subjects, line))

    def sources(self, requests: Iterable[int]) -> dict[int, tuple[Source, ...]]:
        """Read the statements behind edit requests, with the revisions they were read at."""
        with read_transaction(self.engine) as connection:
            found = queue.sources(connection, requests)
        return {request: tuple(rows) for request, rows in found.items()}

    def subject_states(self, model: Model) -> list[SubjectStateRow]:
        """Say which checkpoint carries the stored state of each live subject."""
        with read_transaction(self.engine) as connection:
            return facts.subject_states(connection, model.id)

    def history(self, model: Model, subject: str) -> list[HistoryRow]:
        """Read all edits of a subject's facts, oldest first, with the statements behind them."""
        with read_transaction(self.engine) as connection:
            return reading.history(connection, model.id, subject)

    def status(self, model: Model) -> Status:
        """Say where a model stands."""
        with read_transaction(self.engine) as connection:
            return reading.status(connection, reading.model_named(connection, model.name))

    def archive(self, target: Path) -> None:
        """Copy a SQLite ledger into a new file, as one moment shows it; a writer may go on meanwhile.

        Args:
            target: The copy, which appears whole or not at all.

        Raises:
            LedgerUrlError: If this is no SQLite ledger (use pg_dump), or the file exists.
            DiskFullError: If there is no room.
            LedgerReadOnlyError: If it may not be written.
        """
        retention.archive(self.engine, target)

    def query(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        limit: int | None = 1000,
        timeout_s: float = 60.0,
    ) -> QueryResult:
        """Run one statement that only reads; the views are described in docs/ledger.md.

        Raises:
            QueryRefusedError: If it would write, or does not run.
        """
        return shell.query(self.url, sql, parameters or {}, limit=limit, timeout_s=timeout_s)
