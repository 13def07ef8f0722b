"""Playing a file of pulls as nightly syncs, up to the plan.

A pull file has one JSON object a line (gzip allowed), the query result of one night: ``pulled_at`` and
``rows``, each with ``position``, ``positionLabel``, ``officeholder``, ``officeholderLabel``, ``start_year``
and ``end_year``. A line becomes a small Wikibase: positions with officeholder (P1308) statements. The rules:

* A statement's id is the position, the holder, and a counter over that holder's terms in order of their
  start, so it stays the same when years are corrected.
* The query lists who holds an office or left it lately. A holder that is no longer listed has therefore
  ended, and nobody knows when: the statement stays, with an end of somevalue.
* An item's revision grows when its statements or its label changed since the pull before, and its
  modification date is that of the pull: the earliest that can be known of it. In the first pull all items are
  as new as the pull.
* A label equal to the item's own id is no label.
"""

from __future__ import annotations

import gzip
import json
import logging
import uuid
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from kb.diff import Known, changes, guard
from kb.errors import BadTermError, PullFileError
from kb.model import (
    YEAR,
    Bound,
    Label,
    Probe,
    Rank,
    Statement,
    Value,
    ValueKind,
    WikiTime,
    entity_id,
    id_order,
)
from kb.render import reading
from kb.semantics import resolve, verdict
from kb.sightings import observe
from kb.trust import Change, ChangeKind, Held, Pending, Reason, Trust
from kb.turtle import TurtleWriter, utc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from kb.feed import ChangeFeed
    from kb.relations import Relation, Relations

_LOG = logging.getLogger(__name__)
PROPERTY = "P1308"
_IDS = uuid.UUID("7d9f1c0e-4a53-5d0e-9a4e-3f6d8a1b2c4d")
Group = tuple[str, str]
"""Subject and property."""


@dataclass(frozen=True, slots=True)
class Pull:
    """One line of a pull file. ``skipped`` counts rows that could not be read."""

    at: datetime
    rows: tuple[tuple[str, str, str, str], ...]
    labels: Mapping[str, str]
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Round:
    """One night of the replay: what the source holds at ``at``."""

    number: int
    at: datetime
    statements: tuple[Statement, ...]
    probes: tuple[Probe, ...]
    labels: Mapping[str, Label]
    skipped: int = 0

    def turtle(self) -> str:
        """The night as Turtle in Wikidata's shape."""
        return "".join(
            TurtleWriter().graph(
                until=self.at, probes=self.probes, statements=self.statements, labels=self.labels
            )
        )


def read_pulls(path: Path) -> list[Pull]:
    """Read a pull file, in order of time.

    Raises:
        PullFileError: the file or a line of it cannot be read.
    """
    pulls = []
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise PullFileError(
            f"The pull file {path} cannot be read: {error}.", path=str(path), line=0
        ) from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            pulls.append(_pull(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PullFileError(
                f"Line {number} of {path} is no pull ({error}); expected pulled_at and rows.",
                path=str(path),
                line=number,
            ) from error
    return sorted(pulls, key=lambda pull: pull.at)


def _pull(raw: Mapping[str, Any]) -> Pull:
    rows: set[tuple[str, str, str, str]] = set()
    labels: dict[str, str] = {}
    skipped = 0
    for row in raw["rows"]:
        try:
            position, holder = entity_id(row["position"]), _holder(row.get("officeholder") or "")
        except BadTermError:
            skipped += 1
            continue
        start, end = str(row.get("start_year") or ""), str(row.get("end_year") or "")
        rows.add((position, holder, start, end))
        for entity, text in ((position, row.get("positionLabel")), (holder, row.get("officeholderLabel"))):
            if text and entity and text != entity:
                labels[entity] = min(str(text), labels.get(entity, str(text)))
    return Pull(utc(datetime.fromisoformat(raw["pulled_at"])), tuple(sorted(rows)), labels, skipped)


def _holder(text: str) -> str:
    """The holder's id; an unknown holder (nothing, or a blank node's name) is the empty text."""
    if not text or text.startswith(("_:", "t")) or "/.well-known/genid/" in text:
        return ""
    return entity_id(text.rsplit("/", 1)[-1])


def _year(text: str) -> WikiTime | None:
    try:
        return WikiTime.of(int(text), 0, 0, YEAR)
    except (ValueError, BadTermError):
        return None


def rounds(pulls: Iterable[Pull]) -> Iterator[Round]:
    """Turn pulls into nights, by the rules at the head of this module."""
    known: dict[str, Statement] = {}
    contents: dict[str, str] = {}
    versions: dict[str, Probe] = {}
    for number, pull in enumerate(pulls, start=1):
        current = {one.id: one for one in _statements(pull)}
        for gone in known.keys() - current.keys():
            current[gone] = replace(known[gone], end=Bound("somevalue"))
        known = current
        by_subject: defaultdict[str, list[Statement]] = defaultdict(list)
        for one in current.values():
            by_subject[one.subject].append(one)
        for subject, group in by_subject.items():
            content = "".join(sorted(one.to_json() for one in group)) + pull.labels.get(subject, "")
            if contents.get(subject) != content:
                contents[subject] = content
                before = versions.get(subject)
                versions[subject] = Probe(subject, 1 + (before.revision or 0 if before else 0), pull.at)
        yield Round(
            number=number,
            at=pull.at,
            statements=tuple(
                replace(one, revision=versions[one.subject].revision or 0)
                for one in sorted(current.values(), key=lambda one: (id_order(one.subject), one.id))
            ),
            probes=tuple(versions[subject] for subject in sorted(by_subject, key=id_order)),
            labels={entity: Label(entity, text, "en") for entity, text in pull.labels.items()},
            skipped=pull.skipped,
        )


def _statements(pull: Pull) -> Iterator[Statement]:
    terms: defaultdict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for position, holder, start, end in pull.rows:
        terms[position, holder].append((start, end))
    for (position, holder), spans in sorted(terms.items()):
        for count, (start, end) in enumerate(sorted(spans)):
            guid = uuid.uuid5(_IDS, f"{position}/{holder}/{count}")
            begun, ended = _year(start), _year(end)
            yield Statement(
                id=f"{position}${str(guid).upper()}",
                subject=position,
                property=PROPERTY,
                value=Value.item(holder) if holder else Value.somevalue(),
                rank=Rank.NORMAL,
                start=Bound("value", begun) if begun else None,
                end=Bound("value", ended) if end else None,
            )


@dataclass(slots=True)
class Night:
    """What one night of a rehearsal came to."""

    number: int
    at: datetime
    changes: list[Change]
    counts: Counter[str]
    reasons: Counter[str]
    stopped: tuple[str, ...] = ()
    skipped: int = 0

    def edits(self) -> list[Change]:
        """The changes that would be edited in; none when the burst guard stopped the night."""
        return [] if self.stopped else [one for one in self.changes if one.kind.is_edit]

    def line(self) -> str:
        """The night in one line for people: changes by kind, and why what was held back was."""
        kinds = ", ".join(
            f"{self.counts[kind.value]} {kind.value}" for kind in ChangeKind if self.counts[kind.value]
        )
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items()))
        stopped = f"; STOPPED: {self.stopped[0]}" if self.stopped else ""
        waiting = f" (held back: {reasons})" if reasons else ""
        return f"night {self.number:>3}  {self.at:%Y-%m-%d %H:%M}  {kinds or 'nothing'}{waiting}{stopped}"

    def summary(self) -> dict[str, Any]:
        """Plain data for a line of JSON: counts by kind, and every hold and conflict with its reason."""
        held_back = [one for one in self.changes if one.kind in {ChangeKind.QUARANTINE, ChangeKind.CONFLICT}]
        return {
            "night": self.number,
            "at": self.at.isoformat(),
            "changes": {kind.value: self.counts.get(kind.value, 0) for kind in ChangeKind},
            "reasons": dict(sorted(self.reasons.items())),
            "stopped": list(self.stopped),
            "skipped_rows": self.skipped,
            "edits": [_plain(one) for one in self.edits()],
            "held_back": [_plain(one) for one in held_back],
        }


def _plain(one: Change) -> dict[str, Any]:
    return {
        "kind": one.kind.value,
        "subject": one.subject,
        "property": one.property,
        "old": one.old.value.canonical if one.old else None,
        "new": one.new.value.canonical if one.new else None,
        "reason": one.reason,
        "releases_at": one.releases_at.isoformat() if one.releases_at else None,
        "statements": [source for source, _ in one.sources],
    }


@dataclass(slots=True)
class Rehearsal:
    """A ledger in memory: plays nights one after the other, taking every planned edit as done.

    Attributes:
        relations: how properties work.
        trust: how much to believe.
        held: what the model would hold, by (subject, property), then by slot.
        pending: what earlier nights left behind, likewise.
    """

    relations: Mapping[str, Relation]
    trust: Trust = field(default_factory=Trust)
    held: dict[Group, dict[str, Held]] = field(default_factory=dict)
    pending: dict[Group, dict[str, Pending]] = field(default_factory=dict)
    groups: set[Group] = field(default_factory=set)

    def night(self, feed: ChangeFeed, number: int, at: datetime, subjects: Sequence[str]) -> Night:
        """Pull everything the feed holds of some subjects, plan, and take the plan as done.

        Args:
            feed: where from.
            number: the night's number.
            at: the reference time.
            subjects: items to sync.
        """
        statements = feed.statements(subjects, list(self.relations))
        groups: defaultdict[tuple[str, str], list[Statement]] = defaultdict(list)
        for one in statements:
            groups[one.subject, one.property].append(one)
        self.groups |= groups.keys()
        wanted = {subject for subject, _ in self.groups}
        wanted |= {one.value.canonical for one in statements if one.value.kind is ValueKind.ITEM}
        labels = feed.labels(sorted(wanted))
        probes = {one.subject: one for one in feed.probe(sorted({subject for subject, _ in self.groups}))}
        self._merge({one.subject: one.redirect_to for one in probes.values() if one.redirect_to})
        planned: list[Change] = []
        for subject, prop in sorted(self.groups):
            decided = verdict(groups[subject, prop], self.relations[prop], at, subject=subject)
            planned += changes(
                decided,
                Known(
                    held=list(self.held.get((subject, prop), {}).values()),
                    pending=list(self.pending.get((subject, prop), {}).values()),
                    labels=labels,
                    modified_at=probes[subject].modified_at if subject in probes else None,
                ),
                at,
                self.relations[prop],
                self.trust,
            )
        return self._settle(Night(number, at, planned, Counter(), Counter()), labels)

    def _merge(self, redirects: Mapping[str, str]) -> None:
        """Give what is held and awaited of merged items to the items they became: new names, no edit."""
        for subject, prop in sorted(self.groups):
            target = resolve(subject, redirects)
            if target == subject:
                continue
            self.groups.discard((subject, prop))
            self.groups.add((target, prop))
            for slot, fact in self.held.pop((subject, prop), {}).items():
                self.held.setdefault((target, prop), {}).setdefault(slot, replace(fact, subject=target))
            for slot, seen in self.pending.pop((subject, prop), {}).items():
                self.pending.setdefault((target, prop), {}).setdefault(slot, replace(seen, subject=target))

    def _settle(self, night: Night, labels: Mapping[str, Label]) -> Night:
        facts = Counter({prop: 0 for _, prop in self.groups})
        for (_, prop), slots in self.held.items():
            facts[prop] += len(slots)
        burst = guard(night.changes, facts, self.trust)
        night.stopped = burst.reasons
        for one in night.changes:
            night.counts[one.kind.value] += 1
            reason = one.held_back_for()
            if reason is not None:
                night.reasons[reason.value] += 1
            elif one.kind is ChangeKind.CONFLICT:
                night.reasons["conflict"] += 1
            waiting = self.pending.setdefault((one.subject, one.property), {})
            seen = observe(waiting.pop(one.slot, None), one, night.at, labels, self.trust)
            if seen is not None:
                waiting[one.slot] = seen
        if night.stopped:
            night.reasons[Reason.BURST.value] += sum(1 for one in night.changes if one.kind.is_edit)
        for one in night.edits():
            self._apply(one, labels)
        return night

    def _apply(self, one: Change, labels: Mapping[str, Label]) -> None:
        slots = self.held.setdefault((one.subject, one.property), {})
        if one.kind is ChangeKind.SUPPRESS and one.old is not None:
            text = self.relations[one.property].ended_text(one.old.label)
            slots[one.slot] = replace(one.old, value=Value.novalue(), label=text)
            return
        if one.new is None:
            slots.pop(one.slot, None)
            return
        value = one.new.value
        text = reading(value, self.relations[one.property], labels) or value.canonical
        slots[one.slot] = Held(one.subject, one.property, one.slot, value, text, labels[one.subject].text)

    def facts(self) -> list[dict[str, str]]:
        """Everything held, as plain data, in order of property and subject."""
        return [
            {
                "subject": one.subject,
                "subject_label": one.subject_label,
                "property": one.property,
                "value": one.value.canonical,
                "label": one.label,
            }
            for key in sorted(self.held, key=lambda key: (id_order(key[1]), id_order(key[0])))
            for _, one in sorted(self.held[key].items())
        ]


def play(
    pulls: Iterable[Pull],
    relations: Relations,
    trust: Trust,
    feed_of: Callable[[Round], ChangeFeed],
    rehearsal: Rehearsal | None = None,
) -> Iterator[Night]:
    """Play pulls as nightly syncs, up to the plan.

    Args:
        pulls: in order of time.
        relations: must hold P1308.
        trust: how much to believe.
        feed_of: gives a feed over a night, such as a SPARQL feed on a server that was just loaded with its
            Turtle.
        rehearsal: the ledger in memory to use, for those who want to look into it afterwards.

    Yields:
        One night a pull.
    """
    ledger = rehearsal or Rehearsal(relations.only((PROPERTY,)), trust)
    for one in rounds(pulls):
        night = ledger.night(feed_of(one), one.number, one.at, [probe.subject for probe in one.probes])
        night.skipped = one.skipped
        yield night
