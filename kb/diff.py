"""From what should be said and what is said to what to do about it. Pure.

A change passes these gates in order, and the first that holds it names the reason:

1. two open values where one is allowed: *conflict*, nothing is edited;
2. the same value, whatever its label: *unchanged* or *relabel*, nothing is edited;
3. block lists, which a person's release does not pass; labels that are missing; then, unless a person
   released it or allowed the subject: labels that are misshapen or shared, too few references, a subject that
   reads differently than before;
4. the hold: a value must have stood for the hold window and been seen twice; a value that went and came back
   must stand for the flip window; an object whose item was edited meanwhile must read the same in two pulls.

A value counts as standing since it was first seen in an unbroken run of pulls, or since the item's own
modification date if that is earlier: the item has not changed since then, so the value stood there already.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from kb import labels as label_rules
from kb.model import DesiredFact, GroupVerdict, Label, Value, ValueKind
from kb.render import reading
from kb.semantics import resolve_value
from kb.trust import UNKNOWN, Change, ChangeKind, Held, Pending, Reason, Trust

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from kb.relations import Relation


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of one group, a subject's statements of one property, beside what they say.

    Attributes:
        held: what the model holds of it.
        pending: what earlier pulls saw of it and did not apply.
        labels: of the subject and of every object involved; an absent one has no usable label.
        modified_at: the subject item's modification date, or None if unknown.
        shared: entities whose label is not theirs alone.
        redirects: target by merged item, for objects held under an old id.
        object_modified: when the items among the objects were last edited, where that is known.
        taught: texts under which the model holds the subject's facts of other relations.
        gone: values that lately went, by slot, for slots in which nothing is pending ("" for a vacancy).
    """

    held: Sequence[Held] = ()
    pending: Sequence[Pending] = ()
    labels: Mapping[str, Label]
    modified_at: datetime | None
    shared: Collection[str] = ()
    redirects: Mapping[str, str] = field(default_factory=dict)
    object_modified: Mapping[str, datetime] = field(default_factory=dict)
    taught: Collection[str] = ()
    gone: Mapping[str, Collection[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Night:
    """What all slots of one group share; `waiting` is what is pending, by slot."""

    verdict: GroupVerdict
    known: Known
    waiting: Mapping[str, Pending]
    at: datetime
    relation: Relation
    trust: Trust

    def held(self) -> dict[str, Held]:
        """What the model holds by slot, a merged object under the name of what it was merged into."""
        found = {}
        for one in self.known.held:
            value = resolve_value(one.value, self.known.redirects)
            slot = value.canonical if self.relation.is_multi() else ""
            found[slot] = replace(one, value=value, slot=slot)
        return found

    def ended(self) -> set[Value]:
        """The values that ended."""
        return {resolve_value(value, self.known.redirects) for value in self.verdict.ended}

    def known_as(self) -> set[str]:
        """The texts that the model knows the subject by."""
        return {one.subject_label for one in self.known.held if one.subject_label} | set(self.known.taught)


def changes(
    verdict: GroupVerdict, known: Known, at: datetime, relation: Relation, trust: Trust
) -> list[Change]:
    """Compare one group's verdict with what the model holds.

    Args:
        verdict: what Wikidata says, from `kb.semantics.verdict`.
        known: what is known beside.
        at: the reference time.
        relation: how the property works.
        trust: how much to believe.

    Returns:
        One change a slot (wanted, held or waited for), in order of slots, `unchanged` ones included.
    """
    waiting = {one.slot: one for one in known.pending}
    night = _Night(verdict, known, waiting, at, relation, trust)
    held = night.held()
    if verdict.conflict is not None:
        reason = f"{verdict.conflict}; edit Wikidata or wait until one of them ends"
        return [
            Change(ChangeKind.CONFLICT, verdict.subject, verdict.property, slot, held.get(slot), None, reason)
            for slot in sorted({*held, *waiting}) or [""]
        ]
    wanted = {fact.slot: fact for fact in verdict.facts}
    return [
        _slot(slot, held.get(slot), wanted.get(slot), night) for slot in sorted({*wanted, *held, *waiting})
    ]


def _slot(slot: str, old: Held | None, new: DesiredFact | None, night: _Night) -> Change:
    subject, prop = night.verdict.subject, night.verdict.property
    if new is None:
        return _gone(slot, old, night)
    make = Change(ChangeKind.INSERT, subject, prop, slot, old, new, "", sources=new.sources)
    if old is None:
        return _gated(replace(make, reason="a fact the model does not hold"), night)
    if old.value == new.value:
        return _same(make, old, new, night)
    labels = night.known.labels
    if new.value.kind is not ValueKind.ITEM and reading(new.value, night.relation, labels) == old.label:
        return replace(make, kind=ChangeKind.UNCHANGED, reason="another value that reads the same")
    reason = f"{old.value.canonical} gave way to {new.value.canonical}"
    return _gated(replace(make, kind=ChangeKind.REPLACE, reason=reason), night)


def _same(make: Change, old: Held, new: DesiredFact, night: _Night) -> Change:
    object_label = night.known.labels.get(new.value.canonical)
    subject_label = night.known.labels.get(new.subject)
    if new.value.kind is ValueKind.ITEM and object_label is not None and object_label.text != old.label:
        reason = f"only the object's label changed: {old.label!r} to {object_label.text!r}"
        return replace(make, kind=ChangeKind.RELABEL, reason=reason)
    if subject_label is not None and old.subject_label and subject_label.text != old.subject_label:
        reason = f"only the subject's label changed: {old.subject_label!r} to {subject_label.text!r}"
        return replace(make, kind=ChangeKind.RELABEL, reason=reason)
    return replace(make, kind=ChangeKind.UNCHANGED, reason="the model holds it")


def _gone(slot: str, old: Held | None, night: _Night) -> Change:
    """Nothing wanted in a slot that the model fills, or that something was waiting for."""
    verdict, relation = night.verdict, night.relation
    make = Change(ChangeKind.UNCHANGED, verdict.subject, verdict.property, slot, old, None, UNKNOWN)
    unknown = "unknown-value" in verdict.flags and not verdict.facts
    if unknown if relation.is_multi() else not verdict.vacant:
        return make
    if old is None:
        return replace(make, reason="nothing holds and the model holds nothing")
    empty = "no-statements" in verdict.flags or "all-deprecated" in verdict.flags
    if old.value.kind is ValueKind.NOVALUE and not empty:
        return replace(make, reason="the model says that nothing holds")
    # Other statements may have ended long ago: of a value that was removed or deprecated, nothing says so.
    deleted = empty or not (old.value in night.ended() or "novalue" in verdict.flags)
    if not deleted and relation.ended == "vacate" and not relation.is_multi():
        return replace(make, kind=ChangeKind.VACATE, reason="ended without a successor; waiting for one")
    kind, reason = ChangeKind.RETRACT, "its statements are gone" if deleted else "ended"
    if not deleted and relation.suppresses():
        kind, reason = ChangeKind.SUPPRESS, f"{old.value.canonical} ended without a successor"
    return _gated(replace(make, kind=kind, reason=reason), night)


def _gated(change: Change, night: _Night) -> Change:
    """Let an edit through, or hold it back with the first reason found."""
    trust = night.trust
    new = change.new
    canonical = new.value.canonical if new is not None else ""
    if trust.blocks(change.subject, change.property, canonical):
        return _quarantine(change, Reason.BLOCKED, "on a block list; take it off to release")
    if (change.subject, change.property, change.slot, canonical) in trust.released:
        # A person's word stands for the hold, but an edit without a text is impossible.
        return _labels_there(change, night) or replace(
            change, reason=f"{change.reason}; released by a person"
        )
    problem = _labels_there(change, night) or (
        None
        if change.subject in trust.allow_subjects
        else _labels_sound(change, night) or _standing(change, night)
    )
    return problem or change


def _quarantine(change: Change, reason: Reason, why: str, releases_at: datetime | None = None) -> Change:
    return replace(
        change,
        kind=ChangeKind.QUARANTINE,
        reason=f"{reason.value}: {why}",
        releases_at=releases_at,
        would_be=change.kind,
    )


def _labels_there(change: Change, night: _Night) -> Change | None:
    new = change.new
    if change.kind is ChangeKind.RETRACT:  # nothing is written
        return None
    if change.subject not in night.known.labels:
        why = f"{change.subject} has no label in the chain; add one on Wikidata"
        return _quarantine(change, Reason.LABEL_MISSING, why)
    if new is not None and reading(new.value, night.relation, night.known.labels) is None:
        what = (
            "no label in the chain"
            if new.value.kind is ValueKind.ITEM
            else "no reading by the relation's rules"
        )
        why = f"{new.value.canonical} has {what}; add one"
        return _quarantine(change, Reason.LABEL_MISSING, why)
    return None


def _labels_sound(change: Change, night: _Night) -> Change | None:
    new, old, trust = change.new, change.old, night.trust
    if change.kind is ChangeKind.RETRACT:
        return None
    texts = {change.subject: night.known.labels[change.subject].text}
    if new is not None and new.value.kind not in {ValueKind.TIME, ValueKind.QUANTITY}:
        texts[new.value.canonical] = reading(new.value, night.relation, night.known.labels) or ""
    for entity, text in texts.items():
        shape = label_rules.shape_problem(text, trust.bad_words)
        if shape is not None:
            return _quarantine(
                change, Reason.LABEL_SHAPE, f"{entity} reads {text!r} ({shape}); correct it on Wikidata"
            )
    if change.subject in night.known.shared:
        return _quarantine(
            change,
            Reason.SHARED_LABEL,
            f"another entity is called {texts[change.subject]!r} too; allow the subject",
        )
    if new is not None and new.references < trust.min_references:
        why = f"{new.references} of {trust.min_references} references that name a source; add one on Wikidata"
        return _quarantine(change, Reason.UNREFERENCED, why)
    # A new fact goes by what its subject's other facts were taught under.
    known_as = {old.subject_label} - {""} if old is not None else night.known_as()
    if known_as and texts[change.subject] not in known_as:
        since = _earliest(change, night, count_modification=False)
        release = since + timedelta(hours=trust.relabel_hold_hours)
        if night.at < release:
            why = f"{change.subject} read {min(known_as)!r} and now reads {texts[change.subject]!r}"
            return _quarantine(change, Reason.SUBJECT_RELABELLED, why, release)
    return None


def _run(change: Change, night: _Night) -> Pending | None:
    """The unbroken run of sightings of this very change, or None if tonight is its first."""
    seen = night.waiting.get(change.slot)
    wanted: Value | None = change.new.value if change.new is not None else None
    return seen if seen is not None and seen.sightings > 0 and seen.value == wanted else None


def _earliest(change: Change, night: _Night, *, count_modification: bool) -> datetime:
    since = night.at
    seen = _run(change, night)
    if seen is not None:
        since = min(since, seen.first_seen_at)
    if count_modification and night.known.modified_at is not None:
        since = min(since, night.known.modified_at)
    return since


def _standing(change: Change, night: _Night) -> Change | None:
    """The hold, the sightings, and the longer hold of a value that went and came back."""
    trust, at = night.trust, night.at
    hold = timedelta(hours=night.relation.hold_hours)
    seen = _run(change, night)
    waiting = night.waiting.get(change.slot)
    canonical = change.new.value.canonical if change.new is not None else ""
    flipped = canonical in (
        waiting.previous_values if waiting is not None else night.known.gone.get(change.slot, ())
    )
    window = max(hold, timedelta(hours=trust.flip_hold_hours)) if flipped else hold
    # a flip is known to have moved lately whatever the modification date says, but an unmoved item has not
    since = _earliest(change, night, count_modification=True)
    sightings = 1 + (seen.sightings if seen is not None else 0)
    if night.known.modified_at is not None and at - night.known.modified_at >= window:
        sightings += 1
    release = since + window
    if flipped and at < release:
        return _quarantine(
            change, Reason.FLIP, f"it went and came back; it must stand {_hours(window)}", release
        )
    if at < release:
        return _quarantine(change, Reason.HOLD, f"it must stand {_hours(window)}", release)
    if sightings < trust.min_sightings:
        why = f"seen {sightings} of {trust.min_sightings} times; the next pull decides"
        return _quarantine(change, Reason.FLIP if flipped else Reason.HOLD, why, at)
    return _label_standing(change, night, seen, window)


def _label_standing(change: Change, night: _Night, seen: Pending | None, window: timedelta) -> Change | None:
    """An object's label lives on an item of its own: how long the subject's has stood says nothing of it."""
    new, at = change.new, night.at
    if new is None or new.value.kind is not ValueKind.ITEM:
        return None
    item, text = new.value.canonical, night.known.labels[new.value.canonical].text
    edited = night.known.object_modified.get(item)
    if seen is not None and seen.label and seen.label != text:
        why = f"{item} read {seen.label!r} last time and {text!r} now; the next pull decides"
    elif seen is None and edited is not None and at - edited < window:
        why = f"{item} was edited {edited:%Y-%m-%d %H:%M} UTC and reads {text!r}; the next pull decides"
    else:
        return None
    return _quarantine(change, Reason.LABEL_UNSETTLED, why, at)


def _hours(window: timedelta) -> str:
    return f"{window.total_seconds() / 3600:g} h"


@dataclass(frozen=True, slots=True)
class BurstVerdict:
    """Whether a night's edits are too many to believe.

    Attributes:
        stop: True: hold the edits of these relations back, ask a person.
        reasons: one sentence each; empty if all is well.
        properties: those that changed too much, each with its reason; all that changed, where all together
            did.
    """

    stop: bool
    reasons: tuple[str, ...] = ()
    properties: Mapping[str, str] = field(default_factory=dict)

    @property
    def held(self) -> str:
        """Why edits are held back; empty if none are."""
        return "; ".join(self.reasons) if self.stop else ""


def guard(planned: Sequence[Change], facts: Mapping[str, int], trust: Trust) -> BurstVerdict:
    """Look at a night as a whole.

    Inserts into a relation that holds nothing yet are its first filling, no burst.

    Args:
        planned: all changes of the night.
        facts: live facts by property before tonight.
        trust: the limits.
    """
    disturbing = Counter(
        one.property
        for one in planned
        if one.kind in {ChangeKind.REPLACE, ChangeKind.RETRACT, ChangeKind.SUPPRESS}
        or (one.kind is ChangeKind.INSERT and facts.get(one.property, 0) > 0)
    )
    burst = {}
    for prop, count in sorted(disturbing.items()):
        limit = max(trust.burst_floor, trust.burst_share * facts.get(prop, 0))
        if count > limit:
            burst[prop] = (
                f"{count} of {facts.get(prop, 0)} facts of {prop} would change; the limit is {limit:g}"
            )
    reasons = list(burst.values())
    total = sum(disturbing.values())
    if total > trust.burst_total:
        reasons.append(f"{total} facts would change in one night; the limit is {trust.burst_total}")
        burst = dict.fromkeys(disturbing, reasons[-1]) | burst
    return BurstVerdict(bool(reasons), tuple(reasons), burst)
