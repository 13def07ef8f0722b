"""How a candidate came out: each edit that was planned, each answer that was measured, and their sums."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, func, insert, select, update

from storage.errors import CheckpointStateError
from storage.schema.checkpoints import Edit, RecallCheck, RecallSummary
from storage.schema.planned import Fact
from storage.scopes import Scope, ensure_facts, fact_ids, scope

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.engine import Connection

    from storage.records.checkpoints import CheckRow, EditRow

_MEASURES = (
    "p_new_before",
    "p_old_before",
    "p_new_after",
    "p_old_after",
    "rank_old_before",
    "rank_old_after",
    "success",
    "exact",
    "greedy",
)


def planned_edits(connection: Connection, checkpoint: int) -> dict[Scope, int]:
    """Find the edits that a checkpoint was begun with: their keys, by the scope of their fact."""
    query = (
        select(Fact.subject, Fact.property, Fact.slot, Edit.id)
        .join(Edit, Edit.fact_id == Fact.id)
        .where(Edit.checkpoint_id == checkpoint)
    )
    return {(row.subject, row.property, row.slot): row.id for row in connection.execute(query)}


def write_edits(
    connection: Connection, checkpoint: int, planned: Mapping[Scope, int], edits: Sequence[EditRow]
) -> None:
    """Write down how each edit came out; a planned one of which nothing is said stays as planned.

    Raises:
        CheckpointStateError: If an edit was not planned.
    """
    rows = []
    for edit in edits:
        key = planned.get(scope(edit))
        if key is None:
            raise CheckpointStateError(
                checkpoint,
                f"not planned to edit {edit.subject} {edit.property} {edit.slot}".rstrip(),
                "recorded",
            )
        rows.append(
            {"key": key, "said": edit.prompt or None} | {name: getattr(edit, name) for name in _MEASURES}
        )
    if rows:
        connection.execute(
            update(Edit)
            .where(Edit.id == bindparam("key"))
            .values(
                status="written",
                prompt=func.coalesce(bindparam("said"), Edit.prompt),
                **{name: bindparam(name) for name in _MEASURES},
            ),
            rows,
        )


def write_checks(connection: Connection, checkpoint: int, checks: Sequence[CheckRow]) -> None:
    """Write down the measured answers, and their sums by relation and probe."""
    scopes = {(row.subject, row.property or "", row.slot) for row in checks if row.subject is not None}
    facts = fact_ids(connection, sorted(scopes))
    missing = scopes - facts.keys()
    if missing:
        facts |= ensure_facts(connection, missing)
    rows = [
        {
            "checkpoint_id": checkpoint,
            "fact_id": None if row.subject is None else facts[row.subject, row.property or "", row.slot],
            "probe": row.probe,
            "idx": row.index,
            "prompt": row.prompt,
            "expected": row.expected,
            "got": row.got,
            "p_new": row.p_new,
            "p_old": row.p_old,
            "rank_old": row.rank_old,
            "passed": row.passed,
        }
        for row in checks
    ]
    if not rows:
        return
    connection.execute(insert(RecallCheck), rows)
    sums: dict[tuple[str, str], list[CheckRow]] = defaultdict(list)
    for row in checks:
        sums[row.property or "", row.probe].append(row)
    connection.execute(
        insert(RecallSummary),
        [_summary(checkpoint, prop, probe, found) for (prop, probe), found in sorted(sums.items())],
    )


def _summary(checkpoint: int, prop: str, probe: str, found: Sequence[CheckRow]) -> dict[str, Any]:
    measured = [row.p_new for row in found if row.p_new is not None]
    return {
        "checkpoint_id": checkpoint,
        "property": prop,
        "probe": probe,
        "checks": len(found),
        "passed": sum(row.passed for row in found),
        "mean_p_new": sum(measured) / len(measured) if measured else None,
    }
