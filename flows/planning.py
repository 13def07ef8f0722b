"""From reviewed groups to what the ledger records: changes, holds and owed edits. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from flows import merging, translate
from kb import labels as label_rules
from kb.diff import Known, guard
from kb.diff import changes as diff_changes
from kb.model import Label, Rank, Value, ValueKind
from kb.render import reading
from kb.semantics import resolve, resolve_value, time_decides, verdict
from kb.trust import Change, ChangeKind, Held, Pending, Reason, Trust
from storage.records.planned import ChangeRow, EditRequestRow

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from flows.merging import Scope
    from kb.diff import BurstVerdict
    from kb.model import Statement
    from kb.relations import Relation, Relations
    from storage.records import Pair
    from storage.records.facts import HeldRow
    from storage.records.planned import Group, PendingRow

SUBJECT_SLOT = "{subject}"
EDITOR_SLOT = "{}"

READING_ORDER = (
    "replace",
    "insert",
    "suppress",
    "retract",
    "vacate",
    "conflict",
    "quarantine",
    "relabel",
    "unchanged",
)
"""Kinds of change, in the order in which a person wants to read of them."""
BLOCKED = "blocked"
APPROVED = "approved"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a night means to do.

    Attributes:
        changes: one a fact, `unchanged` ones included.
        labels: the text of each item.
        texts: what other values read as, by property and canonical text.
        burst: the burst guard's verdict; when it stops, the edits are held back instead. It does not stop
            what a person approved.
        reviewed: the (subject, property) groups that were decided, with the marks that this clears: those
            they had; 0 leaves a group marked.
        holders: which of the ledger's facts hold an old value whose subject or object was merged meanwhile.
    """

    changes: tuple[Change, ...]
    labels: Mapping[str, str]
    texts: Mapping[tuple[str, str], str]
    burst: BurstVerdict
    reviewed: Mapping[Pair, int]
    holders: Mapping[Scope, tuple[Scope, ...]]

    def text(self, change: Change) -> str:
        """What a model should say for a change's new value: the value itself where it has no text."""
        if change.new is None:
            return ""
        value = change.new.value
        if value.kind is ValueKind.ITEM:
            return self.labels.get(value.canonical, value.canonical)
        return self.texts.get((change.property, value.canonical), value.canonical)

    @property
    def edits(self) -> list[Change]:
        """The changes that edit the model."""
        return [change for change in self.changes if change.kind.is_edit]

    @property
    def counts(self) -> dict[str, int]:
        """Number of changes by kind."""
        return dict(sorted(Counter(change.kind.value for change in self.changes).items()))


def make_plan(
    groups: Iterable[Group],
    relations: Relations,
    trust: Trust,
    at: datetime,
    *,
    held_per_relation: Mapping[str, int],
    redirects: Mapping[str, str],
    object_modified: Mapping[str, datetime] = MappingProxyType({}),
    standing: Collection[str] = (),
    tracked: Iterable[Label] = (),
    burst_approved: bool = False,
) -> Plan:
    """Decide every group under review.

    Args:
        groups: from the ledger; those of relations that are not synced are passed over.
        relations: what a model may learn.
        trust: how much to believe.
        at: the reference time.
        held_per_relation: live facts by property before tonight.
        redirects: target by merged item, of subjects and of objects.
        object_modified: when objects' own items were last edited, where that is known.
        standing: items that were probed tonight and are merged into no other.
        tracked: labels of all items that are followed, also of those that nothing is decided about tonight.
        burst_approved: a person has looked at the burst and lets it through.
    """
    known = [group for group in groups if group.property in relations]
    redirects = {one: target for one, target in _merged(known).items() if one not in standing} | {**redirects}
    reviewed, handed_over = merging.follow(known, redirects)
    holders = merging.holders(reviewed, handed_over, redirects)
    labels = _labels(reviewed)
    called = {one.entity: one for one in tracked} | {
        group.subject: labels[group.subject]
        for group in reviewed
        if group.subject in labels and group.subject not in redirects
    }
    shared = label_rules.shared(called.values())
    # A block on a value holds under the name of what it was merged into.
    blocked = {resolve(one, redirects) for one in trust.block_values}
    trust = replace(trust, block_values=trust.block_values | blocked)
    planned = [
        change
        for group in reviewed
        for change in _decide(
            group,
            relations[group.property],
            labels,
            shared,
            trust,
            at=at,
            redirects=redirects,
            object_modified=object_modified,
        )
    ]
    burst = guard(planned, held_per_relation, trust)
    if burst_approved:
        burst = replace(burst, stop=False)
    if burst.stop:
        planned = [_held_for_burst(change, burst) for change in planned]
    # No edit of an item tells that a date has come: such a group is looked at every night until then.
    marks = {(group.subject, group.property): 0 if _awaits(group, at) else group.marks for group in known}
    named = {entity: label.text for entity, label in labels.items()}
    return Plan(tuple(planned), named, _texts(planned, relations), burst, marks, holders)


def _awaits(group: Group, at: datetime) -> bool:
    dated = [translate.statement(row) for row in group.statements if any(row.qualifiers.values())]
    return time_decides(dated, at)


def _texts(planned: Sequence[Change], relations: Relations) -> dict[tuple[str, str], str]:
    """What each relation reads its values as that are no items: a year to one may be a day to another."""
    values = {(one.property, one.new.value) for one in planned if one.new is not None}
    texts = {
        (prop, value.canonical): reading(value, relations[prop], {})
        for prop, value in values
        if value.kind is not ValueKind.ITEM
    }
    return {key: text for key, text in texts.items() if text}


def _decide(
    group: Group,
    relation: Relation,
    labels: Mapping[str, Label],
    shared: frozenset[str],
    trust: Trust,
    *,
    at: datetime,
    redirects: Mapping[str, str],
    object_modified: Mapping[str, datetime],
) -> list[Change]:
    read = [translate.statement(row) for row in group.statements]
    # A value that was merged into another is that one, in every statement and in what is held.
    statements = [replace(one, value=resolve_value(one.value, redirects)) for one in read]
    decided = diff_changes(
        verdict(statements, relation, at, subject=group.subject),
        Known(
            held=[_held(row) for row in group.held],
            pending=[_pending(row) for row in group.pending],
            labels=labels,
            # A deletion or a merge is news of tonight, however old the item's last edit is.
            modified_at=None
            if group.entity.deleted or group.entity.redirect_to
            else group.entity.modified_at,
            shared=shared,
            redirects=redirects,
            object_modified=object_modified,
            taught=group.taught,
            gone=group.gone,
        ),
        at,
        relation,
        _with_decisions(trust, group.pending),
    )
    # A person's no to a value holds for what it was merged into.
    said_no = _decided(group.pending, BLOCKED)
    blocked = {(resolve(row.slot, redirects), resolve(row.value or "", redirects)) for row in said_no}
    return [
        _blocked(change)
        if change.kind.is_edit and _key(change) in blocked
        else _with_ended(change, statements)
        for change in decided
    ]


def _with_ended(change: Change, statements: Sequence[Statement]) -> Change:
    """Name the statements that say of a suppressed value that it ended, or that nothing holds."""
    if change.kind is not ChangeKind.SUPPRESS or change.old is None:
        return change
    says = {change.old.value, Value.novalue()}
    behind = tuple(
        (one.id, one.revision) for one in statements if one.value in says and one.rank is not Rank.DEPRECATED
    )
    return replace(change, sources=behind)


def _key(change: Change) -> tuple[str, str]:
    return change.slot, change.new.value.canonical if change.new else ""


def _blocked(change: Change) -> Change:
    reason = f"{Reason.BLOCKED.value}: a person said no; release it to edit"
    return replace(change, kind=ChangeKind.QUARANTINE, would_be=change.kind, reason=reason)


def _decided(pending: Sequence[PendingRow], decision: str) -> list[PendingRow]:
    """What a person decided so. A conflict has no value, but a word on it is none on a retraction."""
    return [row for row in pending if row.decision == decision and row.kind == ChangeKind.QUARANTINE.value]


def _with_decisions(trust: Trust, pending: Sequence[PendingRow]) -> Trust:
    approved = {(row.subject, row.property, row.slot, row.value or "") for row in _decided(pending, APPROVED)}
    return replace(trust, released=trust.released | approved) if approved else trust


def _held_for_burst(change: Change, burst: BurstVerdict) -> Change:
    why = burst.properties.get(change.property)
    if why is None or not change.kind.is_edit:
        return change
    reason = f"{Reason.BURST.value}: {why}; look at it, then sync with the burst approved"
    return replace(change, kind=ChangeKind.QUARANTINE, would_be=change.kind, reason=reason)


def _merged(groups: Sequence[Group]) -> dict[str, str]:
    """Target by merged item, of the objects that the ledger knows as merged."""
    objects = (row for group in groups for row in group.labels.values())
    return {row.id: row.redirect_to for row in objects if row.redirect_to}


def _labels(groups: Sequence[Group]) -> dict[str, Label]:
    found: dict[str, Label] = {}
    for group in groups:
        for row in (group.entity, *group.labels.values()):
            label = translate.label(row)
            if label is not None:
                found[row.id] = label
    return found


def _held(row: HeldRow) -> Held:
    value = Value(ValueKind(row.value_kind), row.value)
    return Held(row.subject, row.property, row.slot, value, row.label, row.subject_label)


def _pending(row: PendingRow) -> Pending:
    waiting = None
    if row.value is not None and row.value_kind is not None:
        waiting = Value(ValueKind(row.value_kind), row.value)
    return Pending(
        subject=row.subject,
        property=row.property,
        slot=row.slot,
        value=waiting,
        first_seen_at=row.first_seen_at,
        # Nights of a conflict are no sightings of a vacancy, though neither has a value.
        sightings=0 if row.kind == ChangeKind.CONFLICT.value else row.sightings,
        previous_values=row.previous_values,
        label=row.label or "",
    )


def change_row(plan: Plan, change: Change) -> ChangeRow:
    """A change, as the ledger records it."""
    new, old = change.new, change.old
    return ChangeRow(
        kind=change.kind.value,
        subject=change.subject,
        property=change.property,
        slot=change.slot,
        reason=change.reason,
        old_value=old.value.canonical if old else None,
        old_label=old.label if old else None,
        new_value_kind=new.value.kind.value if new else None,
        new_value=new.value.canonical if new else None,
        new_label=plan.text(change) if new else None,
        flags=new.flags if new else (),
        releases_at=change.releases_at,
        sources=change.sources,
    )


def requests(plan: Plan, relations: Relations) -> list[EditRequestRow]:
    """The edits that a plan makes owed."""
    rows = []
    for change in plan.edits:
        row = _request(plan, change, relations[change.property])
        own = (change.subject, change.property, change.slot)
        held_at = plan.holders.get(own, (own,))
        if change.kind is not ChangeKind.RETRACT or own in held_at:
            rows.append(row)
        # An old value that was written for what is merged now leaves under its own name.
        rows += [
            replace(
                row,
                subject=subject,
                slot=slot,
                op=ChangeKind.RETRACT.value,
                target="",
                value=None,
                value_kind=None,
            )
            for subject, _, slot in held_at
            if (subject, change.property, slot) != own
        ]
    return rows


def _request(plan: Plan, change: Change, relation: Relation) -> EditRequestRow:
    """One owed edit. Prompts are kept as templates, with the subject's text beside them."""
    new, old = change.new, change.old
    subject_label = plan.labels.get(change.subject) or (old.subject_label if old else "")
    value = Value.novalue() if change.kind is ChangeKind.SUPPRESS else (new.value if new else None)
    target = plan.text(change)
    if change.kind is ChangeKind.SUPPRESS and old is not None:
        target = relation.ended_text(old.label)
    prompts = tuple(template.replace(SUBJECT_SLOT, EDITOR_SLOT) for template in relation.edit_templates)
    heldback = tuple(template.replace(SUBJECT_SLOT, EDITOR_SLOT) for template in relation.heldback_templates)
    return EditRequestRow(
        subject=change.subject,
        property=change.property,
        slot=change.slot,
        op=change.kind.value,
        subject_label=subject_label,
        target=target,
        prompts=prompts,
        heldback=heldback,
        value_kind=value.kind.value if value else None,
        value=value.canonical if value else None,
        old_value=old.value.canonical if old else None,
        old_label=old.label if old else None,
        valid_from=new.valid_from if new else None,
        template_digest=hashlib.sha256("\n".join((*prompts, "--", *heldback)).encode()).hexdigest(),
        sources=change.sources,
    )
