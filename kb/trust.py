"""When a change may be believed: the settings, and what has been seen so far."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from kb.model import DesiredFact, Source, Value


UNKNOWN = "the value is not known"
"""The reason of an unchanged slot that holds somevalue."""


class ChangeKind(StrEnum):
    """What becomes of one fact tonight. Only the first four edit a model."""

    INSERT = "insert"
    REPLACE = "replace"
    RETRACT = "retract"
    SUPPRESS = "suppress"
    UNCHANGED = "unchanged"
    RELABEL = "relabel"
    VACATE = "vacate"
    CONFLICT = "conflict"
    QUARANTINE = "quarantine"

    @property
    def is_edit(self) -> bool:
        """Whether it changes the model."""
        return self in {
            ChangeKind.INSERT,
            ChangeKind.REPLACE,
            ChangeKind.RETRACT,
            ChangeKind.SUPPRESS,
        }


class Reason(StrEnum):
    """Why something is held back; the first word of a quarantine's reason."""

    HOLD = "hold"
    FLIP = "flip"
    LABEL_MISSING = "label-missing"
    LABEL_SHAPE = "label-shape"
    LABEL_UNSETTLED = "label-unsettled"
    SUBJECT_RELABELLED = "subject-relabelled"
    SHARED_LABEL = "shared-label"
    BLOCKED = "blocked"
    UNREFERENCED = "unreferenced"
    BURST = "burst"


@dataclass(frozen=True, slots=True)
class Held:
    """What the model holds now in one slot.

    Attributes:
        subject: entity id.
        property: property id.
        slot: as in `DesiredFact`.
        value: the object; novalue where the fact is suppressed.
        label: the object's text as it was edited in.
        subject_label: the subject's text as it was edited in; empty if unknown.
    """

    subject: str
    property: str
    slot: str
    value: Value
    label: str
    subject_label: str = ""


@dataclass(frozen=True, slots=True)
class Pending:
    """What earlier pulls saw in one slot and did not apply. Tonight's pull is not counted in it.

    Attributes:
        subject: entity id.
        property: property id.
        slot: as in `DesiredFact`.
        value: the value waiting, or None for a vacancy waiting to retract.
        first_seen_at: start of its unbroken run of sightings.
        sightings: pulls in that run.
        previous_values: canonical texts of values that stood in this slot and went again, within the flip
            memory; the empty text stands for a vacancy.
        label: the value's label when it was last seen; empty if unknown.
        went_at: when each of ``previous_values`` was last seen to be gone; may be empty.
    """

    subject: str
    property: str
    slot: str
    value: Value | None
    first_seen_at: datetime
    sightings: int
    previous_values: tuple[str, ...] = ()
    label: str = ""
    went_at: tuple[datetime, ...] = ()


@dataclass(frozen=True, slots=True)
class Trust:
    """How much to believe.

    Attributes:
        min_sightings: pulls (or one pull and an old modification date) that must have seen a value.
        flip_memory_hours: how long a value that went is remembered.
        flip_hold_hours: hold of a value that stood before, went, and came back.
        relabel_hold_hours: hold of a change whose subject reads differently than when it was last edited.
        min_references: hold back facts with fewer references that name a source.
        burst_share: share of a relation's facts that may change in one night.
        burst_floor: that many changes of a relation never count as a burst.
        burst_total: changes of all relations together.
        allow_subjects: exempt from all but block lists, missing labels and conflicts: from holds, from
            references, and from what labels look like.
        block_subjects: never edited.
        block_properties: never edited.
        block_values: never edited in as objects.
        bad_words: further words that no label may hold.
        released: (subject, property, slot, canonical or empty for a retraction) that a person let go.
    """

    min_sightings: int = 2
    flip_hold_hours: int = 24 * 7
    flip_memory_hours: int = 24 * 30
    relabel_hold_hours: int = 24 * 60
    min_references: int = 0
    burst_share: float = 0.25
    burst_floor: int = 50
    burst_total: int = 10_000
    allow_subjects: frozenset[str] = frozenset()
    block_subjects: frozenset[str] = frozenset()
    block_properties: frozenset[str] = frozenset()
    block_values: frozenset[str] = frozenset()
    bad_words: frozenset[str] = frozenset()
    released: frozenset[tuple[str, str, str, str]] = frozenset()

    def blocks(self, subject: str, prop: str, value: str | None) -> bool:
        """Whether a block list forbids an edit.

        Args:
            subject: entity id.
            prop: property id.
            value: canonical text of the object that would be edited in; empty or None for a retraction.
        """
        return subject in self.block_subjects or prop in self.block_properties or value in self.block_values


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one slot tonight.

    Attributes:
        kind: what.
        subject: entity id.
        property: property id.
        slot: as in `DesiredFact`.
        old: what the model holds, or None.
        new: what Wikidata says, or None.
        reason: one sentence; of a quarantine it begins with a `Reason` and a colon.
        releases_at: when waiting alone would let it go, or None if it takes more than waiting.
        sources: the statements behind it.
        would_be: for a quarantine, the kind it would have been.
    """

    kind: ChangeKind
    subject: str
    property: str
    slot: str
    old: Held | None
    new: DesiredFact | None
    reason: str
    releases_at: datetime | None = None
    sources: tuple[Source, ...] = ()
    would_be: ChangeKind | None = None

    def held_back_for(self) -> Reason | None:
        """The reason of a quarantine as a word, else None."""
        return Reason(self.reason.partition(":")[0]) if self.kind is ChangeKind.QUARANTINE else None
