"""What lies between two checkpoints: the facts that one holds and the other does not, and their measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flows.workspace import Workspace
    from storage.records.checkpoints import CheckpointRow
    from storage.records.runs import Model

_EDITS = """
SELECT subject, subject_label, property, slot, operation, new_target, checkpoint_id
FROM edit_history
WHERE model = :model
ORDER BY edit_id
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """One fact that two checkpoints do not agree on; None where one does not hold it."""

    subject: str
    label: str
    property: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two checkpoints side by side; None stands for the base model.

    Attributes:
        before: the first.
        after: the second.
        facts: what they do not agree on.
        metrics: by name, the first's and the second's number, where either has one.
    """

    before: CheckpointRow | None
    after: CheckpointRow | None
    facts: tuple[Difference, ...]
    metrics: dict[str, tuple[float | None, float | None]]


def named(ws: Workspace, model: Model, which: str) -> CheckpointRow | None:
    """The checkpoint that a person means: a digest or its beginning, `live`, or `base` (None).

    Raises:
        UnknownCheckpointError: none fits, or several do.
    """
    if which == "base":
        return None
    return ws.ledger.head(model) if which == "live" else ws.ledger.checkpoint(model, which)


def compare(
    ws: Workspace, model: Model, before: CheckpointRow | None, after: CheckpointRow | None
) -> Comparison:
    """Compare what two checkpoints hold, whether or not one descends from the other.

    Args:
        ws: the home.
        model: whose checkpoints.
        before: the first; None for the base model.
        after: the second.
    """
    rows = ws.ledger.query(_EDITS, {"model": model.name}, limit=None).dicts
    first, second = (_held(rows, _line(ws, model, one)) for one in (before, after))
    facts = tuple(
        Difference(
            scope[0], _label(scope, first, second), scope[1], _target(scope, first), _target(scope, second)
        )
        for scope in sorted({*first, *second})
        if _target(scope, first) != _target(scope, second)
    )
    return Comparison(before, after, facts, _metrics(before, after))


def _line(ws: Workspace, model: Model, checkpoint: CheckpointRow | None) -> set[int]:
    return set() if checkpoint is None else {row.id for row in ws.ledger.lineage(model, checkpoint.id)}


def _held(rows: list[dict[str, Any]], line: set[int]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The newest edit of each fact on a line of checkpoints, without what was retracted."""
    newest = {
        (row["subject"], row["property"], row["slot"]): row for row in rows if row["checkpoint_id"] in line
    }
    return {scope: row for scope, row in newest.items() if row["operation"] != "retract"}


def _target(scope: tuple[str, str, str], held: dict[tuple[str, str, str], dict[str, Any]]) -> str | None:
    return held[scope]["new_target"] if scope in held else None


def _label(scope: tuple[str, str, str], *lines: dict[tuple[str, str, str], dict[str, Any]]) -> str:
    return str(next(line[scope]["subject_label"] for line in reversed(lines) if scope in line))


def _metrics(
    before: CheckpointRow | None, after: CheckpointRow | None
) -> dict[str, tuple[float | None, float | None]]:
    first, second = ({} if one is None else one.metrics or {} for one in (before, after))
    names = [name for name in {**first, **second} if _number(first.get(name)) or _number(second.get(name))]
    return {name: (first.get(name), second.get(name)) for name in names}


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
