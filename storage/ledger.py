"""The ledger's face: one method a step, one short transaction a method.

    with Ledger.open(url) as ledger, ledger.writer("name", holder="sync 12 on host") as lease:
        ledger.recover(lease, files)
        run = ledger.begin_run(lease, "sync", reference_time=at)
        ...

Every writing method takes the lease and checks its epoch in its own transaction, so a writer that was overtaken
while it slept writes nothing.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import insert, select, update

from storage import facts, ingest, lifecycle, plan, reading, recovery, review, shell
from storage import migrate as migration
from storage.batching import batches
from storage.crash import OnPoint, silent
from storage.database import insert_or_ignore, make_engine, parse_url, raise_os_error, sqlite_path, writing
from storage.database import reading as read_transaction
from storage.errors import LockHeldError, ModelMismatchError, StaleLeaseError, UnknownModelError
from storage.lock import exclusive
from storage.records import (
    ChangeRow,
    CheckpointIntent,
    CheckpointRow,
    CheckRow,
    EditRequestRow,
    EditRow,
    EntityRow,
    Group,
    HeldRow,
    HistoryRow,
    IngestReport,
    Json,
    Lease,
    Model,
    Pair,
    PendingRow,
    PlanReport,
    QueryResult,
    Recovery,
    StatementRow,
    Status,
    SubjectStateRow,
)
from storage.schema import Entity, HeldBack, SyncRun
from storage.schema import Model as ModelTable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from sqlalchemy.engine import URL, Connection, Engine

    from storage.checkpoints import CheckpointFiles

logger = logging.getLogger(__name__)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Ledger:
    """The ledger. Open it with `Ledger.open`.

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

    @contextmanager
    def _step(self, name: str, lease: Lease | None) -> Iterator[Connection]:
        """One writing transaction: fenced, with a point on each side of its commit."""
        with writing(self.engine) as connection:
            if lease is not None:
                self._fence(connection, lease)
            yield connection
            self._point(f"{name}.before_commit")
        self._point(f"{name}.after_commit")

    @staticmethod
    def _fence(connection: Connection, lease: Lease) -> None:
        query = select(ModelTable.lock_epoch).where(ModelTable.id == lease.model.id).with_for_update()
        epoch = connection.scalars(query).one_or_none()
        if epoch is None:
            raise UnknownModelError(lease.model.name)
        if epoch != lease.epoch:
            raise StaleLeaseError(lease.model.name, lease.epoch, epoch)

    # Models and the writer

    def ensure_model(self, name: str, base_ref: str, base_digest: str) -> Model:
        """Register a model, or find it.

        Args:
            name: Its name.
            base_ref: Where the base comes from.
            base_digest: Digest of the base's weights.

        Returns:
            The model. All groups known so far are marked for its review.

        Raises:
            ModelMismatchError: If the name stands for another base.
        """
        with self._step("ensure_model", None) as connection:
            now = self._clock()
            known = {model.name for model in reading.models(connection)}
            connection.execute(
                insert_or_ignore(connection, ModelTable).values(
                    name=name, base_ref=base_ref, base_digest=base_digest, lock_epoch=0, created_at=now
                )
            )
            model = reading.model_named(connection, name)
            if model.base_digest != base_digest:
                raise ModelMismatchError(name, model.base_digest, base_digest)
            if name not in known:
                review.mark_all(connection, model.id, now)
        return model

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

    @contextmanager
    def writer(self, model_name: str, holder: str) -> Iterator[Lease]:
        """Be the only writer of a model while the block runs.

        Args:
            model_name: The model.
            holder: Who you are, for the message others get: program, run, host, process id.

        Yields:
            The lease, with a fresh epoch.

        Raises:
            UnknownModelError: If the model is not registered.
            LockHeldError: If another writer is at work.
        """
        model = self.model(model_name)
        with exclusive(self.engine, model.id, model.name) as free:
            if not free:
                with read_transaction(self.engine) as connection:
                    row = connection.execute(select(ModelTable).where(ModelTable.id == model.id)).one()
                raise LockHeldError(model_name, row.holder or "another process", row.held_since)
            with self._step("writer", None) as connection:
                epoch = connection.scalars(
                    update(ModelTable)
                    .where(ModelTable.id == model.id)
                    .values(lock_epoch=ModelTable.lock_epoch + 1, holder=holder, held_since=self._clock())
                    .returning(ModelTable.lock_epoch)
                ).one()
                model = reading.model_named(connection, model_name)
            yield Lease(model, epoch, holder)
            self._release(model.id, epoch)

    def _release(self, model_id: int, epoch: int) -> None:
        with writing(self.engine) as connection:
            connection.execute(
                update(ModelTable)
                .where(ModelTable.id == model_id, ModelTable.lock_epoch == epoch)
                .values(holder=None, held_since=None)
            )

    def recover(self, lease: Lease, files: CheckpointFiles) -> Recovery:
        """Settle what a crash left; call it first thing after taking the lease.

        Args:
            lease: The writer's lease.
            files: The checkpoints' folder.

        Returns:
            What was settled; false if there was nothing.
        """
        with self._step("recover", lease) as connection:
            settled = recovery.settle(connection, lease, files, now=self._clock(), point=self._point)
        with read_transaction(self.engine) as connection:
            orphans = recovery.removable_orphans(connection, lease, files)
        for name in orphans:
            files.delete(name)
            self._point("recover.orphans")
        found = Recovery(
            settled.abandoned,
            settled.rejected,
            settled.kept,
            settled.requeued,
            settled.crashed_runs,
            tuple(orphans),
        )
        if found:
            logger.warning("Settled what an earlier run had left: %s", found)
        return found

    # Runs

    def begin_run(
        self,
        lease: Lease,
        kind: str,
        *,
        reference_time: datetime,
        flow_run_id: str | None = None,
        params: Json | None = None,
    ) -> int:
        """Open a run.

        Args:
            lease: The writer's lease.
            kind: sync, backfill, rebuild, ...
            reference_time: The moment for which facts are wished.
            flow_run_id: The orchestrator's name for it.
            params: What it was called with.

        Returns:
            The run's key.
        """
        with self._step("begin_run", lease) as connection:
            run: int = connection.execute(
                insert(SyncRun)
                .values(
                    model_id=lease.model.id,
                    kind=kind,
                    flow_run_id=flow_run_id,
                    reference_time=reference_time,
                    params=dict(params or {}),
                    state="running",
                    epoch=lease.epoch,
                    counters={},
                    started_at=self._clock(),
                )
                .returning(SyncRun.id)
            ).scalar_one()
        return run

    def finish_run(
        self, lease: Lease, run: int, state: str, *, counters: Json | None = None, error: str | None = None
    ) -> None:
        """Close a run.

        Args:
            lease: The writer's lease.
            run: The run.
            state: succeeded, nothing (nothing to do), rejected, held (stopped by a guard), candidate (its checkpoint
                waits for approval), or failed.
            counters: What it counted.
            error: What went wrong.
        """
        with self._step("finish_run", lease) as connection:
            connection.execute(
                update(SyncRun)
                .where(SyncRun.id == run, SyncRun.model_id == lease.model.id)
                .values(state=state, counters=dict(counters or {}), error=error, finished_at=self._clock())
            )

    # What was read

    def cursor(self, source: str) -> datetime | None:
        """Say how far a source was read, None if never."""
        with read_transaction(self.engine) as connection:
            return reading.cursor(connection, source)

    def tracked(self, properties: Iterable[str] | None = None) -> list[EntityRow]:
        """Read the items that are followed, with their last known revision, modification and redirect.

        Args:
            properties: Only items with current statements of these relations.
        """
        with read_transaction(self.engine) as connection:
            return reading.tracked(connection, properties)

    def track(self, lease: Lease, subjects: Iterable[str]) -> int:
        """Follow items from now on.

        Returns:
            How many were not followed before.
        """
        wanted = sorted(set(subjects))
        added = 0
        with self._step("track", lease) as connection:
            for part in batches(wanted):
                connection.execute(
                    insert_or_ignore(connection, Entity),
                    [{"id": subject, "deleted": False, "tracked": False} for subject in part],
                )
                added += connection.execute(
                    update(Entity).where(Entity.id.in_(part), ~Entity.tracked).values(tracked=True)
                ).rowcount
        return added

    def ingest(
        self,
        lease: Lease,
        run: int,
        *,
        source: str,
        cursor_to: datetime | None,
        entities: Iterable[EntityRow],
        statements: Iterable[StatementRow],
        pulled_groups: Iterable[Pair],
        lag_at: datetime | None = None,
    ) -> IngestReport:
        """Store what was pulled and move the cursor, in one transaction. Iterables are read once, never held whole.

        Args:
            lease: The writer's lease.
            run: The run.
            source: Name of the source, for its cursor.
            cursor_to: What was read up to; None leaves the cursor. It never moves back.
            entities: Items as probed or labelled.
            statements: Statements as read.
            pulled_groups: The (subject, property) pairs that were pulled completely: a known statement of such a
                group that is missing was deleted, unless the item's revision is older than the one we know.
            lag_at: The source's own time of this answer.

        Returns:
            What changed. Touched groups are marked for review, for every model.

        Raises:
            CursorPastLagError: If `cursor_to` passes `lag_at`.
        """
        with self._step("ingest", lease) as connection:
            return ingest.ingest(
                connection,
                run,
                now=self._clock(),
                source=source,
                cursor_to=cursor_to,
                lag_at=lag_at,
                entities=entities,
                statements=statements,
                pulled_groups=pulled_groups,
                point=self._point,
            )

    def labels(self, ids: Iterable[str]) -> dict[str, EntityRow]:
        """Read what is known of some items, by id; unknown ones are left out."""
        with read_transaction(self.engine) as connection:
            return review.entity_rows(connection, set(ids))

    # What is owed

    def groups_to_review(self, run: int, *, page_size: int = 500) -> Iterator[Group]:
        """Yield the groups that changed and those in which something waits, by (subject, property).

        Args:
            run: The run; its model's groups are meant.
            page_size: Groups a page; each page is one short read of five queries.
        """
        with read_transaction(self.engine) as connection:
            model_id = connection.scalars(select(SyncRun.model_id).where(SyncRun.id == run)).one()
        return review.groups_to_review(self.engine, model_id, page_size)

    def record_plan(
        self,
        lease: Lease,
        run: int,
        changes: Sequence[ChangeRow],
        requests: Sequence[EditRequestRow],
        *,
        reviewed: Iterable[Pair] = (),
    ) -> PlanReport:
        """Record what was decided about some groups; in one transaction, twice is once.

        Args:
            lease: The writer's lease.
            run: The run.
            changes: Decisions, `unchanged` ones included (they are counted, and settle what waited).
            requests: The edits that are owed.
            reviewed: Groups that were looked at; those of the changes and requests are added. Their review marks
                are cleared, and pending requests in them that are not in `requests` are withdrawn.

        Returns:
            What it did.

        Raises:
            UnknownStatementError: If a request names a statement that was never ingested.
        """
        with self._step("record_plan", lease) as connection:
            return plan.record_plan(
                connection,
                lease.model.id,
                run,
                now=self._clock(),
                changes=changes,
                requests=requests,
                reviewed=reviewed,
                point=self._point,
            )

    def owed(self, model: Model, limit: int | None = None) -> list[EditRequestRow]:
        """Read the pending requests, oldest first."""
        with read_transaction(self.engine) as connection:
            return plan.owed(connection, model.id, limit)

    def pending(self, model: Model) -> list[PendingRow]:
        """Read what is held back."""
        with read_transaction(self.engine) as connection:
            return list(review.pending_rows(connection, model.id, None))

    def retry(self, lease: Lease, request_ids: Collection[int] | None = None) -> int:
        """Put failed requests back into the queue, some or all; one that a newer wish overtook stays.

        Returns:
            How many.
        """
        with self._step("retry", lease) as connection:
            return plan.retry(connection, lease.model.id, request_ids, now=self._clock())

    def decide(self, lease: Lease, pending_id: int, decision: str, *, by: str) -> bool:
        """Approve or block something that is held back; the next plan sees the decision.

        Args:
            lease: The writer's lease.
            pending_id: `PendingRow.id`.
            decision: approved or blocked.
            by: Who decided.

        Returns:
            False if nothing of that id waits.
        """
        with self._step("decide", lease) as connection:
            changed = connection.execute(
                update(HeldBack)
                .where(
                    HeldBack.id == pending_id,
                    HeldBack.model_id == lease.model.id,
                    HeldBack.resolved_at.is_(None),
                )
                .values(decision=decision, decided_by=by)
            )
        return changed.rowcount == 1

    # Checkpoints

    def begin_checkpoint(
        self,
        lease: Lease,
        run: int,
        request_ids: Collection[int],
        *,
        algorithm: str,
        settings: Json,
        from_base: bool = False,
    ) -> CheckpointIntent:
        """Write down a checkpoint that is about to be made, and claim its requests.

        Args:
            lease: The writer's lease.
            run: The run.
            request_ids: Pending requests; may be empty for a rebuild.
            algorithm: Name of the algorithm.
            settings: Its settings.
            from_base: True if the delta will stand on the base itself (a rebuild).

        Returns:
            The checkpoint's key, its parent, and the claimed requests.

        Raises:
            OpenCheckpointError: If another one is open.
            CheckpointStateError: If a request is not pending.
        """
        with self._step("begin_checkpoint", lease) as connection:
            return lifecycle.begin(
                connection,
                lease,
                run,
                request_ids,
                algorithm=algorithm,
                settings=settings,
                from_base=from_base,
                now=self._clock(),
                point=self._point,
            )

    def record_candidate(
        self,
        lease: Lease,
        checkpoint: int,
        *,
        digest: str,
        path: str,
        size_bytes: int,
        files: Json,
        metrics: Json,
        edits: Sequence[EditRow],
        checks: Sequence[CheckRow] = (),
        subjects: Collection[str] | None = None,
    ) -> None:
        """Write down that a checkpoint's files are in place, and how its edits came out.

        Args:
            lease: The writer's lease.
            checkpoint: Key from `begin_checkpoint`.
            digest: From `CheckpointFiles.put`.
            path: Where the files lie, relative to the checkpoints' root.
            size_bytes: Their size.
            files: Digest and size of each file (the manifest's `files`).
            metrics: What was measured over all.
            edits: How each planned edit came out; planned ones left out count as written.
            checks: Measured answers.
            subjects: Subjects whose stored state the files carry; None means those of the planned edits.

        Raises:
            CheckpointStateError: If it is not being built.
        """
        with self._step("record_candidate", lease) as connection:
            lifecycle.record_candidate(
                connection,
                lease.model.id,
                checkpoint,
                digest=digest,
                path=path,
                size_bytes=size_bytes,
                files=files,
                metrics=metrics,
                edits=edits,
                checks=checks,
                subjects=subjects,
                point=self._point,
                now=self._clock(),
            )

    def promote(self, lease: Lease, checkpoint: int, *, reason: str) -> None:
        """Make a candidate the head: its edits are applied, its failed ones go back into the queue.

        Raises:
            CheckpointStateError: If it is no candidate.
            StaleLeaseError: If somebody else moved the head or took the lease.
        """
        with self._step("promote", lease) as connection:
            lifecycle.promote(
                connection, lease, checkpoint, reason=reason, now=self._clock(), point=self._point
            )

    def reject(
        self,
        lease: Lease,
        checkpoint: int,
        *,
        reason: str,
        requeue: bool = True,
        failed: Collection[int] = (),
    ) -> int:
        """Turn an open checkpoint down. Its files are removed by the next `recover`, or by you.

        Args:
            lease: The writer's lease.
            checkpoint: The checkpoint.
            reason: Why.
            requeue: True gives its requests back, with one more attempt counted; False fails them.
            failed: Requests that fail in any case.

        Returns:
            How many requests are pending again.

        Raises:
            CheckpointStateError: If it is not open.
        """
        with self._step("reject", lease) as connection:
            return lifecycle.reject(
                connection,
                checkpoint,
                reason=reason,
                again=requeue,
                failed=failed,
                attempt=1,
                state="rejected",
                now=self._clock(),
            )

    def rollback(self, lease: Lease, to_checkpoint: int | None, *, reason: str, review: bool = True) -> None:
        """Move the head to a checkpoint that was live before, back or forth; None means the base itself.

        Args:
            lease: The writer's lease.
            to_checkpoint: Where to.
            reason: Why.
            review: True marks the facts concerned for the next plan, which wishes again what still holds;
                False leaves them until their statements change.

        Raises:
            CheckpointStateError: If the target was never promoted.
            OpenCheckpointError: If a candidate waits.
        """
        with self._step("rollback", lease) as connection:
            lifecycle.rollback(
                connection,
                lease,
                to_checkpoint,
                reason=reason,
                review=review,
                now=self._clock(),
                point=self._point,
            )

    # What the model holds

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

    def lineage(self, model: Model, checkpoint: int | None = None) -> list[CheckpointRow]:
        """Read a checkpoint (the head, unless named) and its ancestors, root first."""
        with read_transaction(self.engine) as connection:
            start = reading.model_named(connection, model.name).head if checkpoint is None else checkpoint
            return reading.lineage(connection, model.id, start)

    def live_facts(
        self, model: Model, *, subjects: Iterable[str] | None = None, at: datetime | None = None
    ) -> list[HeldRow]:
        """Read what the model holds: now or at a moment, of all subjects or of some."""
        with read_transaction(self.engine) as connection:
            return list(facts.held_rows(connection, model.id, subjects, at))

    def subject_states(self, model: Model) -> list[SubjectStateRow]:
        """Say which checkpoint carries the stored state of each live subject."""
        with read_transaction(self.engine) as connection:
            return facts.subject_states(connection, model.id)

    # Questions

    def history(self, model: Model, subject: str) -> list[HistoryRow]:
        """Read all edits of a subject's facts, oldest first, with the statements behind them."""
        with read_transaction(self.engine) as connection:
            return reading.history(connection, model.id, subject)

    def status(self, model: Model) -> Status:
        """Say where a model stands."""
        with read_transaction(self.engine) as connection:
            return reading.status(connection, reading.model_named(connection, model.name))

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
