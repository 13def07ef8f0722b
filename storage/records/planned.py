"""What a plan reads and decides: groups, changes, what is held back, what is owed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from storage.records import Source
    from storage.records.facts import HeldRow
    from storage.records.pulled import EntityRow, StatementRow


@dataclass(frozen=True, slots=True)
class Group:
    """All that the plan step needs of one (subject, property).

    Attributes:
        subject: The item.
        property: The relation.
        entity: The item as known, with its modification date.
        statements: The statements that stand now.
        held: What the model holds for this group.
        pending: What is held back for this group.
        labels: The items among the values, and those that they were merged into, as known.
        marks: How often it was marked for review since a plan last cleared it.
        taught: Texts under which the model holds facts of the item.
        gone: Values that went lately, by slot ("" for a vacancy); empty unless they were asked for.
    """

    subject: str
    property: str
    entity: EntityRow
    statements: tuple[StatementRow, ...]
    held: tuple[HeldRow, ...]
    pending: tuple[PendingRow, ...]
    labels: Mapping[str, EntityRow]
    marks: int = 0
    taught: frozenset[str] = frozenset()
    gone: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PendingRow:
    """Something that was seen and held back.

    Attributes:
        id: Key of the quarantine row.
        subject: Its item.
        property: Its relation.
        slot: The fact's slot.
        kind: quarantine or conflict.
        reason: Why it is held back.
        value_kind: Kind of the value that waits, None for a retraction.
        value: The value that waits, None for a retraction.
        label: Its text.
        first_seen_at: Reference time of the first run that saw it.
        last_seen_at: Reference time of the last one.
        sightings: How many pulls saw it.
        previous_values: Values that waited here before and gave way, oldest first ("" for a retraction).
        releases_at: When the hold ends by itself, if it does.
        decision: approved or blocked, if a person has decided.
    """

    id: int
    subject: str
    property: str
    slot: str
    kind: str
    reason: str
    value_kind: str | None
    value: str | None
    label: str | None
    first_seen_at: datetime
    last_seen_at: datetime
    sightings: int
    previous_values: tuple[str, ...]
    releases_at: datetime | None
    decision: str | None


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """What a plan decided about one fact.

    Attributes:
        kind: insert, replace, retract, suppress, unchanged, relabel, vacate, conflict or quarantine.
        subject: The item.
        property: The relation.
        slot: The fact's slot.
        reason: Why, in one sentence or word.
        old_value: What the model holds.
        old_label: Its text.
        new_value_kind: Kind of the new value.
        new_value: What it should hold, or what is held back.
        new_label: Its text.
        flags: Remarks of the semantics.
        releases_at: When a held-back change releases by itself.
        sources: The statements behind it.
    """

    kind: str
    subject: str
    property: str
    slot: str = ""
    reason: str = ""
    old_value: str | None = None
    old_label: str | None = None
    new_value_kind: str | None = None
    new_value: str | None = None
    new_label: str | None = None
    flags: tuple[str, ...] = ()
    releases_at: datetime | None = None
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class EditRequestRow:
    """One edit that is owed to the model.

    Attributes:
        subject: The item.
        property: The relation.
        slot: The fact's slot.
        op: insert, replace, retract or suppress.
        subject_label: The subject's text in the prompts.
        target: The text to teach; "" for a retraction.
        prompts: The prompts to edit.
        heldback: Prompts kept for checking.
        value_kind: Kind of the new value.
        value: The new value, None for a retraction.
        old_value: What the model held.
        old_label: Its text.
        valid_from: When it became true in Wikidata, as text.
        template_digest: Digest of the templates the prompts came from.
        sources: The statements behind it, with their revisions: part of its identity.
        id: Key in the ledger; None before it is recorded.
        state: pending, claimed, applied, superseded, failed, rolled_back.
        attempts: How often it was tried and rejected.
        created_at: When it was recorded.
    """

    subject: str
    property: str
    slot: str
    op: str
    subject_label: str
    target: str
    prompts: tuple[str, ...]
    heldback: tuple[str, ...] = ()
    value_kind: str | None = None
    value: str | None = None
    old_value: str | None = None
    old_label: str | None = None
    valid_from: str | None = None
    template_digest: str = ""
    sources: tuple[Source, ...] = ()
    id: int | None = None
    state: str = "pending"
    attempts: int = 0
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What recording a plan did.

    Attributes:
        changes: Number of changes by kind.
        queued: New pending requests.
        known: Requests that were in the queue already.
        superseded: Pending requests that a newer wish replaced or withdrew.
        held_back: Quarantine rows opened.
        released: Quarantine rows resolved.
    """

    changes: Mapping[str, int]
    queued: int
    known: int
    superseded: int
    held_back: int
    released: int
