"""Between the words of `kb` and those of the ledger. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kb.model import Label, Statement
from storage.records.pulled import EntityRow, StatementRow

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from kb.model import Bound, Probe


def statement_row(statement: Statement) -> StatementRow:
    """A statement as the ledger stores it."""
    content = json.loads(statement.to_json())
    return StatementRow(
        id=statement.id,
        subject=statement.subject,
        property=statement.property,
        value_kind=statement.value.kind.value,
        value=statement.value.canonical,
        rank=statement.rank.value,
        revision=statement.revision,
        content_hash=statement.content_hash(),
        qualifiers={name: content[name] for name in ("start", "end", "point_in_time")},
        reference_count=statement.reference_count,
        valid_from=_bound_text(statement.start),
        valid_to=_bound_text(statement.end),
    )


def statement(row: StatementRow) -> Statement:
    """The statement that a ledger row was made from."""
    content = {
        "id": row.id,
        "subject": row.subject,
        "property": row.property,
        "value": {"kind": row.value_kind, "canonical": row.value},
        "rank": row.rank,
        "reference_count": row.reference_count,
        "revision": row.revision,
        **row.qualifiers,
    }
    return Statement.from_json(json.dumps(content))


def entity_rows(
    probes: Iterable[Probe],
    labels: Mapping[str, Label],
    redirects: Mapping[str, str],
    unlabelled: Collection[str] = (),
) -> list[EntityRow]:
    """Items as probed, with their labels; and of objects, which are not followed, label and merge alone.

    An object's revision is not kept: nothing was read at it.

    Args:
        probes: of the followed items.
        labels: what items are called.
        redirects: target by merged item.
        unlabelled: items that are called nothing, as their label was taken away.
    """

    def called(item: str) -> tuple[str | None, str | None]:
        label = labels.get(item)
        return (label.text, label.language) if label else ("" if item in unlabelled else None, None)

    rows = []
    for probe in probes:
        label, language = called(probe.subject)
        rows.append(
            EntityRow(
                id=probe.subject,
                label=label,
                language=language,
                revision=probe.revision,
                modified_at=probe.modified_at,
                redirect_to=probe.redirect_to,
                deleted=probe.is_deleted,
            )
        )
    for one in sorted({*labels, *redirects, *unlabelled} - {row.id for row in rows}):
        label, language = called(one)
        rows.append(EntityRow(id=one, label=label, language=language, redirect_to=redirects.get(one)))
    return rows


def label(row: EntityRow) -> Label | None:
    """The label of a ledger's item, if it has one."""
    return Label(row.id, row.label, row.language or "") if row.label else None


def _bound_text(bound: Bound | None) -> str | None:
    if bound is None:
        return None
    return bound.time.iso if bound.time else bound.kind
