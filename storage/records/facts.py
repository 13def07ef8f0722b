"""What a model holds, how it came to, and where the states of its subjects lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from storage.records import Source


@dataclass(frozen=True, slots=True)
class HeldRow:
    """A fact that the model holds now.

    Attributes:
        subject: Its item.
        property: Its relation.
        slot: "" for single-valued relations, else the value's canonical text.
        value_kind: Kind of the value.
        value: The value's canonical text.
        label: The text the model was taught (the target).
        op: insert, replace or suppress.
        subject_label: The subject's text in the prompts.
        prompts: The prompts that were edited.
        heldback: Prompts kept for checking.
        edit_id: The edit that made it.
        request_id: The request behind that edit.
        checkpoint_id: The checkpoint that holds it.
        checkpoint: That checkpoint's digest.
        held_since: When that checkpoint became live first.
    """

    subject: str
    property: str
    slot: str
    value_kind: str
    value: str
    label: str
    op: str
    subject_label: str
    prompts: tuple[str, ...]
    heldback: tuple[str, ...]
    edit_id: int
    request_id: int | None
    checkpoint_id: int
    checkpoint: str
    held_since: datetime


@dataclass(frozen=True, slots=True)
class SubjectStateRow:
    """Where the stored state of a live subject lies: in the newest checkpoint that rewrote it."""

    subject: str
    checkpoint_id: int
    checkpoint: str


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One edit of a subject's facts, oldest first; see the view `edit_history`."""

    subject: str
    property: str
    slot: str
    op: str
    old_label: str | None
    new_value: str | None
    new_label: str | None
    status: str
    p_new_before: float | None
    p_new_after: float | None
    p_old_after: float | None
    exact: bool | None
    checkpoint: str | None
    checkpoint_state: str
    decided_at: datetime | None
    live: bool
    sources: tuple[Source, ...]
