"""What a group of statements means at a reference time. Pure: no clock, no network, no storage.

The rules, in order, for the statements of one (subject, property):

1. Deprecated statements never count.
2. A statement is *open* at ``at`` if it has begun and has not ended.
   Begun: no start, an unknown start, or a start whose span has begun. A future start waits.
   Ended: an end of somevalue (it ended, nobody knows when), an end whose date is unreadable, or a date whose
   whole span has passed. An end of novalue says outright that there is none.
   (OpenSanctions nomenklatura #335-337.)
   A point in time in the future waits, too.
3. Among the open ones the best rank wins: preferred if any preferred is open, else normal. So a preferred
   statement that has ended loses to a normal one that is open (Hong Kong's head of government in 2019), and
   is flagged.
4. An unknown object (somevalue) is no fact and no vacancy; "no value" as the best is a vacancy somebody
   asserted.
5. Functional and one-open relations may have one value left, else the group is in conflict. Several
   statements of the same value are one fact with several sources. Multi-valued relations keep all.
6. Of texts in several languages only those in the first of the relation's languages count.
7. A relation read as a time series (population) takes the latest point in time not after ``at``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kb.model import DesiredFact, GroupVerdict, Rank, Statement, Value, ValueKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime
    from typing import Literal

    from kb.relations import Relation

    Phase = Literal["open", "ended", "future"]


def phase(statement: Statement, at: datetime) -> Phase:
    """Whether a statement is open, ended or yet to begin at a time (rank aside)."""
    if has_ended(statement, at):
        return "ended"
    start = statement.start
    if start is not None and start.kind == "value" and start.time is not None and start.time.earliest() > at:
        return "future"
    moment = statement.point_in_time
    if moment is not None and moment.earliest() > at:
        return "future"
    return "open"


def has_ended(statement: Statement, at: datetime) -> bool:
    """Whether the end qualifier says that a statement is over at a time."""
    end = statement.end
    if end is None or end.kind == "novalue":
        return False
    if end.kind == "somevalue" or end.time is None:
        return True
    return end.time.latest() < at


def time_decides(statements: Iterable[Statement], at: datetime) -> bool:
    """Whether a verdict may change by itself, since a statement has yet to begin or to end."""
    return any(
        phase(one, at) == "future"
        or (one.end is not None and one.end.time is not None and not has_ended(one, at))
        for one in statements
        if one.rank is not Rank.DEPRECATED
    )


def verdict(
    statements: Sequence[Statement], relation: Relation, at: datetime, *, subject: str | None = None
) -> GroupVerdict:
    """Decide what should be said.

    Args:
        statements: all statements of one (subject, property); may be empty if ``subject`` is given.
        relation: how the property works.
        at: the sync's reference time.
        subject: the group's subject, needed when there are no statements.

    Returns:
        The verdict. It does not depend on the order of the statements.

    Raises:
        ValueError: the statements are not one group, or nothing names the subject.
    """
    subjects = {statement.subject for statement in statements} | ({subject} if subject else set())
    if len(subjects) != 1 or {statement.property for statement in statements} - {relation.property}:
        raise ValueError(
            "A verdict is over the statements of one subject and one property; name the subject."
        )
    who = subjects.pop()
    usable = sorted(
        (one for one in statements if one.rank is not Rank.DEPRECATED), key=lambda one: (one.id, one.revision)
    )
    ended = frozenset(one.value for one in usable if has_ended(one, at))
    return replace(_verdict(who, statements, usable, relation, at), ended=ended)


def _verdict(
    who: str, statements: Sequence[Statement], usable: Sequence[Statement], relation: Relation, at: datetime
) -> GroupVerdict:
    flags = _group_flags(statements, usable, at)
    open_now = [one for one in usable if phase(one, at) == "open"]
    if relation.series:
        open_now = _latest(open_now)
    preferred = [one for one in open_now if one.rank is Rank.PREFERRED]
    if not preferred and any(one.rank is Rank.PREFERRED for one in usable):
        flags.add("preferred-not-open")
    best = preferred or open_now
    known = [one for one in best if one.value.is_known]
    if any(one.value.kind is ValueKind.SOMEVALUE for one in best):
        flags.add("unknown-value")
    if any(one.value.kind is ValueKind.NOVALUE for one in best):
        flags.add("novalue-beside-values" if known else "novalue")
    if not known:
        unknown = "unknown-value" in flags
        return GroupVerdict(who, relation.property, (), vacant=not unknown, flags=tuple(sorted(flags)))
    if relation.datatype is ValueKind.MONOLINGUAL:
        known = _in_best_language(known, relation.languages)
        if not known:
            flags.add("other-language")
            return GroupVerdict(who, relation.property, (), vacant=False, flags=tuple(sorted(flags)))
    wrong = sorted({one.value.kind.value for one in known if one.value.kind is not relation.datatype})
    if wrong:
        return _conflict(who, relation, f"{wrong[0]} where {relation.datatype} is expected", flags)
    return _settle(who, relation, known, len(preferred), flags)


def _in_best_language(known: Sequence[Statement], languages: Sequence[str]) -> list[Statement]:
    """The texts in the first of the languages that any is in; values of other kinds stay, to be refused."""
    by_language: dict[str, list[Statement]] = {}
    for one in known:
        if one.value.kind is not ValueKind.MONOLINGUAL:
            return list(known)
        by_language.setdefault(one.value.canonical.rpartition("@")[2], []).append(one)
    return next((by_language[language] for language in languages if language in by_language), [])


def _settle(
    subject: str, relation: Relation, known: Sequence[Statement], preferred: int, flags: set[str]
) -> GroupVerdict:
    by_value: dict[Value, list[Statement]] = {}
    for one in known:
        by_value.setdefault(one.value, []).append(one)
    if relation.is_multi():
        facts = tuple(
            _fact(subject, relation, value, by_value[value], flags)
            for value in sorted(by_value, key=lambda value: value.canonical)
        )
        return GroupVerdict(subject, relation.property, facts, vacant=False, flags=tuple(sorted(flags)))
    if len(by_value) > 1 and not preferred:
        flags.add("no-rank-decides")
    if len(by_value) > 1 or "unknown-value" in flags:
        names = sorted(value.canonical for value in by_value) + (
            ["unknown"] if "unknown-value" in flags else []
        )
        return _conflict(subject, relation, f"{len(names)} open values: {', '.join(names)}", flags)
    (value,) = by_value
    fact = _fact(subject, relation, value, by_value[value], flags)
    return GroupVerdict(subject, relation.property, (fact,), vacant=False, flags=tuple(sorted(flags)))


def _conflict(subject: str, relation: Relation, reason: str, flags: set[str]) -> GroupVerdict:
    return GroupVerdict(
        subject, relation.property, (), vacant=False, conflict=reason, flags=tuple(sorted(flags))
    )


def _fact(
    subject: str, relation: Relation, value: Value, behind: Sequence[Statement], group_flags: set[str]
) -> DesiredFact:
    flags = set(group_flags)
    references = max(one.reference_count for one in behind)
    if not references:
        flags.add("unreferenced")
    starts = [one.start.time for one in behind if one.start is not None and one.start.time is not None]
    latest = max(starts, key=lambda time: (time.earliest(), time.precision), default=None)
    return DesiredFact(
        subject=subject,
        property=relation.property,
        slot=value.canonical if relation.is_multi() else "",
        value=value,
        sources=tuple((one.id, one.revision) for one in behind),
        valid_from=None if latest is None else latest.iso,
        flags=tuple(sorted(flags)),
        references=references,
    )


def _group_flags(statements: Sequence[Statement], usable: Sequence[Statement], at: datetime) -> set[str]:
    flags = set()
    if not statements:
        flags.add("no-statements")
    elif not usable:
        flags.add("all-deprecated")
    for one in usable:
        if phase(one, at) == "future":
            flags.add("future-start")
        start, end = one.start, one.end
        if start and end and start.time and end.time and start.time.earliest() > end.time.latest():
            flags.add("start-after-end")
        if end and end.kind == "value" and end.time is None:
            flags.add("unreadable-end")
    return flags


def _latest(open_now: Sequence[Statement]) -> list[Statement]:
    """The statements of a series that share the latest point in time; undated ones count only when alone."""
    dated = [one for one in open_now if one.point_in_time is not None]
    if not dated:
        return list(open_now)

    def moment(one: Statement) -> datetime:
        if one.point_in_time is None:  # pragma: no cover - only dated statements come here
            raise ValueError
        return one.point_in_time.earliest()

    newest = max(moment(one) for one in dated)
    return [one for one in dated if moment(one) == newest]


def resolve(entity: str, redirects: Mapping[str, str]) -> str:
    """Follow redirects to their end."""
    seen = {entity}
    while (target := redirects.get(entity)) is not None and target not in seen:
        seen.add(target)
        entity = target
    return entity


def resolve_value(value: Value, redirects: Mapping[str, str]) -> Value:
    """Follow the redirects of an item value; other values stay."""
    if value.kind is not ValueKind.ITEM:
        return value
    target = resolve(value.canonical, redirects)
    return value if target == value.canonical else Value(ValueKind.ITEM, target)
