"""What the doctor looks at: one function a check. `CHECKS` lists them in the order in which they run.

A check says what is wrong and a way out; it changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, exists, func, select
from sqlalchemy.orm import aliased

from storage import migrate
from storage.errors import CorruptCheckpointError, ForeignCheckpointsError, MissingCheckpointError
from storage.facts import live_query
from storage.head import walk
from storage.recovery import refuse_foreign
from storage.schema.checkpoints import (
    LIVE_STATES,
    OPEN_STATES,
    STORED_STATES,
    Checkpoint,
    Edit,
    Holding,
    RecallCheck,
    SubjectState,
)
from storage.schema.planned import EditRequest, Fact
from storage.schema.pulled import SourceCursor
from storage.schema.runs import SyncRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from storage.checkpoints import CheckpointFiles
    from storage.records.runs import Model

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        check: Which check found it.
        message: What is wrong, and a way out.
        repairable: True if `repair` can put it right without losing anything.
    """

    check: str
    message: str
    repairable: bool = False


@dataclass(slots=True)
class Examination:
    """One examination at work."""

    connection: Connection
    model: Model
    files: CheckpointFiles
    now: datetime
    deep: bool
    looked_at: int = 0

    def count(self, query: Any) -> int:  # noqa: ANN401  any select
        """Count a query's rows."""
        return int(self.connection.scalar(select(func.count()).select_from(query.subquery())) or 0)


def _database(at: Examination) -> Iterator[Finding]:
    if at.connection.dialect.name != "sqlite":
        return
    at.looked_at += 1
    broken = at.connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if broken:
        yield Finding(
            "database", f"{len(broken)} rows name rows that do not exist: restore the ledger from a copy."
        )
    if at.deep:
        said = at.connection.exec_driver_sql("PRAGMA quick_check").scalar()
        if said != "ok":
            yield Finding(
                "database", f"SQLite finds the file damaged ({said}): restore the ledger from a copy."
            )


def _views(at: Examination) -> Iterator[Finding]:
    at.looked_at = len(migrate.views())
    if missing := migrate.missing_views(at.connection):
        yield Finding(
            "views",
            f"The views {', '.join(missing)} are missing: `factsync doctor --repair` makes them again.",
            repairable=True,
        )


def _digests(at: Examination) -> Iterator[Finding]:
    parent = aliased(Checkpoint)
    rows = at.connection.execute(
        select(
            Checkpoint.id,
            Checkpoint.digest,
            Checkpoint.state,
            Checkpoint.from_base,
            parent.digest.label("parent"),
        )
        .outerjoin(parent, parent.id == Checkpoint.parent_id)
        .where(Checkpoint.model_id == at.model.id, Checkpoint.state.in_(STORED_STATES))
    )
    for row in rows:
        at.looked_at += 1
        if not at.deep:
            if not at.files.path(row.digest).is_dir():
                yield Finding(
                    "digests", str(MissingCheckpointError(row.digest, str(at.files.path(row.digest))))
                )
            continue
        try:
            content = at.files.open(row.digest)
        except (MissingCheckpointError, CorruptCheckpointError) as error:
            yield Finding("digests", str(error))
            continue
        # The files of a rebuild name no parent: the same facts are the same files, whatever led to them.
        stands_on = None if row.from_base else row.parent
        if "parent" in content.manifest and content.manifest["parent"] != stands_on:
            yield Finding(
                "digests",
                f"Checkpoint {row.digest[:12]} says its parent is"
                f" {str(content.manifest['parent'])[:12]}, the ledger"
                f" says {str(stands_on)[:12]}: roll back past it and let the next sync make it again.",
            )


def _orphans(at: Examination) -> Iterator[Finding]:
    at.looked_at = len(at.files.digests())
    try:
        refuse_foreign(at.connection, at.files)
    except ForeignCheckpointsError as error:
        yield Finding("orphans", str(error))
        return
    building = at.connection.execute(
        select(Checkpoint.id).where(Checkpoint.state == "building").limit(1)
    ).first()
    if building is not None:  # its files are put in place before their digest is written down
        return
    # Those of a rejected night lie there until the next run, as they should.
    known = at.connection.scalars(select(Checkpoint.digest))
    found = at.files.orphans({digest for digest in known if digest is not None})
    if found:
        yield Finding(
            "orphans",
            f"No checkpoint owns {_some(found)}: `factsync doctor --repair` removes them.",
            repairable=True,
        )


def _lineage(at: Examination) -> Iterator[Finding]:
    head = at.model.head
    path = walk(at.connection, head)
    at.looked_at = len(path)
    rows = {
        row.id: row
        for row in at.connection.execute(
            select(Checkpoint.id, Checkpoint.parent_id, Checkpoint.state, Checkpoint.model_id).where(
                Checkpoint.model_id == at.model.id
            )
        )
    }
    foreign = [key for key in path if key not in rows]
    if foreign:
        yield Finding(
            "lineage",
            f"The lineage runs through another model's {_some(foreign)}: roll back before them.",
        )
    # A parent is always older than its child: a lineage that grows upwards cannot have a cycle.
    for row in rows.values():
        if row.parent_id is not None and row.parent_id >= row.id:
            yield Finding(
                "lineage",
                f"Checkpoint {row.id} is not younger than its parent {row.parent_id}: restore from a copy.",
            )
    live = {key for key, row in rows.items() if row.state in LIVE_STATES}
    if live != set(path) & set(rows):
        wrong = sorted(live ^ (set(path) & set(rows)))
        yield Finding(
            "lineage",
            f"The states of checkpoints {_some(wrong)} do not fit the walk from the head:"
            " roll back to the checkpoint you trust.",
        )
    promoted = [key for key, row in rows.items() if row.state == "promoted"]
    if promoted != ([] if head is None else [head]):
        yield Finding(
            "lineage",
            f"The head is {head}, the promoted checkpoint {_some(promoted)}: roll back to the one you trust.",
        )


def _backed(at: Examination) -> Iterator[Finding]:
    live = live_query(at.model.id)
    said, counted = live_counts(at.connection, at.model.id, at.model.head)
    at.looked_at = counted
    measured = exists().where(
        RecallCheck.checkpoint_id == Edit.checkpoint_id, RecallCheck.fact_id == Edit.fact_id
    )
    unproven = at.count(live.where(~measured, Edit.success.is_(None)))
    if unproven:
        yield Finding(
            "live facts",
            f"{unproven} live facts have no measured recall behind them:"
            " roll back to a checkpoint whose facts have, and sync again.",
        )
    if said != counted:
        yield Finding(
            "live facts",
            f"The head counts {said} live facts, there are {counted}: `factsync doctor --repair` sets it.",
            repairable=True,
        )


def live_counts(connection: Connection, model_id: int, head: int | None) -> tuple[int, int]:
    """Say how many live facts a model's head speaks of, and how many there are."""
    said = 0
    if head is not None:
        said = connection.scalars(select(Checkpoint.live_facts).where(Checkpoint.id == head)).one() or 0
    query = live_query(model_id).with_only_columns(Edit.id).subquery()
    return said, int(connection.scalar(select(func.count()).select_from(query)) or 0)


def _held(at: Examination) -> Iterator[Finding]:
    standing = select(Holding.edit_id).where(Holding.model_id == at.model.id, Holding.held_to.is_(None))
    at.looked_at = at.count(standing)
    live = live_query(at.model.id).with_only_columns(Edit.id)
    one = at.count(live.where(Edit.id.not_in(standing)))
    other = at.count(standing.where(Holding.edit_id.not_in(live)))
    if one or other:
        yield Finding(
            "holdings",
            f"The record of what was held when misses {one} live facts and keeps {other} that are not live:"
            " the views fact_history and live_facts disagree; restore the ledger from a copy.",
        )


def _states(at: Examination) -> Iterator[Finding]:
    on = aliased(Checkpoint)
    stated = (
        exists()
        .where(SubjectState.subject == Fact.subject)
        .where(on.id == SubjectState.checkpoint_id, on.model_id == at.model.id, on.state.in_(LIVE_STATES))
    )
    missing = at.count(live_query(at.model.id).where(~stated))
    if missing:
        yield Finding(
            "states", f"{missing} live facts have no stored state: `factsync rebuild` makes one for each."
        )


def _queue(at: Examination) -> Iterator[Finding]:
    mine = EditRequest.model_id == at.model.id
    lost = select(EditRequest.id).where(
        mine,
        EditRequest.state == "claimed",
        ~exists().where(Checkpoint.id == EditRequest.checkpoint_id, Checkpoint.state.in_(OPEN_STATES)),
    )
    if found := list(at.connection.scalars(lost)):
        yield Finding(
            "queue",
            f"Requests {_some(found)} are claimed by a checkpoint that is not open: restore from a copy.",
        )
    applied = (
        exists()
        .where(Edit.request_id == EditRequest.id, Edit.status == "applied")
        .where(and_(Checkpoint.id == Edit.checkpoint_id, Checkpoint.state.in_(LIVE_STATES)))
    )
    empty = select(EditRequest.id).where(mine, EditRequest.state == "applied", ~applied)
    if found := list(at.connection.scalars(empty)):
        yield Finding(
            "queue",
            f"Requests {_some(found)} count as applied and no live checkpoint carries them: sync again.",
        )


def _unfinished(at: Examination) -> Iterator[Finding]:
    rows = at.connection.execute(
        select(Checkpoint.id, SyncRun.state)
        .join(SyncRun, SyncRun.id == Checkpoint.run_id)
        .where(Checkpoint.model_id == at.model.id, Checkpoint.state.in_(OPEN_STATES))
    )
    stuck = [row.id for row in rows if row.state not in {"running", "candidate"}]
    if stuck:
        yield Finding(
            "unfinished",
            f"Checkpoints {_some(stuck)} were left open: `factsync doctor --repair` closes them.",
            repairable=True,
        )
    running = list(
        at.connection.scalars(
            select(SyncRun.id).where(
                SyncRun.model_id == at.model.id, SyncRun.state == "running", SyncRun.epoch < at.model.epoch
            )
        )
    )
    if running:
        yield Finding(
            "unfinished",
            f"Runs {_some(running)} never ended: `factsync doctor --repair` marks them as crashed.",
            repairable=True,
        )


def _cursors(at: Examination) -> Iterator[Finding]:
    for row in at.connection.execute(select(SourceCursor)):
        at.looked_at += 1
        if row.read_to > at.now:
            yield Finding(
                "cursors",
                f"The cursor of {row.source} ({row.read_to:%Y-%m-%d %H:%M} UTC) lies in the future:"
                " check this machine's clock, then backfill from the last day you trust.",
            )


def _some(items: Iterable[object]) -> str:
    listed = [str(item)[:20] for item in items]
    more = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {more} more" if more > 0 else "") if listed else "none"


CHECKS: dict[str, Callable[[Examination], Iterator[Finding]]] = {
    "database": _database,
    "views": _views,
    "digests": _digests,
    "orphans": _orphans,
    "lineage": _lineage,
    "live facts": _backed,
    "holdings": _held,
    "states": _states,
    "queue": _queue,
    "unfinished": _unfinished,
    "cursors": _cursors,
}
