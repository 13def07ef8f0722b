"""What a night leaves behind for the next: which values were seen, since when, and which came and went. Pure.

The bookkeeping behind `kb.trust.Pending`. It watches what Wikidata says in a slot, whether or not the model
was
edited: a run grows while the same value is seen, ends when another is, and pauses at zero sightings while the
slot is in conflict or its value unknown.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from kb.trust import UNKNOWN, Change, ChangeKind, Pending, Trust

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from kb.model import Label, Value


def observe(
    pending: Pending | None, change: Change, at: datetime, labels: Mapping[str, Label], trust: Trust
) -> Pending | None:
    """Fold one night's change of a slot into what is remembered of it.

    Args:
        pending: what was remembered before tonight.
        change: what `kb.diff.changes` said tonight, from the same ``pending``.
        at: the reference time; never before an earlier night's.
        labels: tonight's labels.
        trust: for how long a value that went is remembered.

    Returns:
        What to remember, or None when there is nothing worth remembering.
    """
    previous = _remembered(pending, at, trust)
    clear, value = _seen(change)
    if not clear:
        run = pending or _start(change, None, at)
        return _keep(replace(run, sightings=0, first_seen_at=at), previous)
    text = labels[value.canonical].text if value is not None and value.canonical in labels else ""
    if pending is not None and pending.sightings > 0 and pending.value == value:
        return _keep(replace(pending, sightings=pending.sightings + 1, label=text), previous)
    if pending is not None and pending.sightings > 0:
        previous = _went(previous, pending.value, at)
    elif pending is None and change.old is not None and change.old.value != value:
        previous = _went(previous, change.old.value, at)
    if value is None or change.kind not in {ChangeKind.UNCHANGED, ChangeKind.RELABEL} or previous:
        return _keep(replace(_start(change, value, at), label=text), previous)
    return None


def _keep(pending: Pending, previous: tuple[tuple[str, datetime], ...]) -> Pending:
    return replace(
        pending,
        previous_values=tuple(canonical for canonical, _ in previous),
        went_at=tuple(at for _, at in previous),
    )


def _start(change: Change, value: Value | None, at: datetime) -> Pending:
    return Pending(change.subject, change.property, change.slot, value, at, 1)


def _seen(change: Change) -> tuple[bool, Value | None]:
    """Whether the slot spoke clearly tonight, and what it said (None: a vacancy)."""
    if change.kind is ChangeKind.CONFLICT:
        return False, None
    if change.kind is ChangeKind.UNCHANGED and change.reason == UNKNOWN:
        return False, None
    return True, change.new.value if change.new is not None else None


def _remembered(pending: Pending | None, at: datetime, trust: Trust) -> tuple[tuple[str, datetime], ...]:
    if pending is None:
        return ()
    since = at - timedelta(hours=trust.flip_memory_hours)
    went_at = pending.went_at or (pending.first_seen_at,) * len(pending.previous_values)
    pairs = zip(pending.previous_values, went_at, strict=False)
    return tuple((canonical, gone) for canonical, gone in pairs if gone >= since)


def _went(
    previous: tuple[tuple[str, datetime], ...], value: Value | None, at: datetime
) -> tuple[tuple[str, datetime], ...]:
    canonical = value.canonical if value is not None else ""
    return (*((text, gone) for text, gone in previous if text != canonical), (canonical, at))
