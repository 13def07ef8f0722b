"""The words of the knowledge side: frozen, plain, and the same whatever the statements came from.

Dates follow Wikibase's RDF export, so that rows from SPARQL and from JSON documents are equal: proleptic
Gregorian, astronomical years (44 BCE is year -43), cut to their precision (`2003`, `2003-05`, `2003-05-07`).
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any, Literal

from kb.errors import BadEntityError, BadTermError

YEAR, MONTH, DAY = 9, 10, 11
_ENTITY_ID = re.compile(r"[QPL][1-9][0-9]{0,17}", re.ASCII)
_TIME = re.compile(r"([+-]?)(\d{1,16})-(\d{2})-(\d{2})(?:T[0-9:.]*(?:Z|[+-]\d\d:\d\d)?)?", re.ASCII)
_ISO = re.compile(r"(-?)(\d{4,16})(?:-(\d\d))?(?:-(\d\d))?", re.ASCII)
_MAX_DIGITS = 127  # what Wikibase holds
_NARROWEST = timedelta(microseconds=1)
_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)


class Rank(StrEnum):
    """A statement's rank."""

    PREFERRED = "preferred"
    NORMAL = "normal"
    DEPRECATED = "deprecated"


class ValueKind(StrEnum):
    """What a statement's main value is."""

    ITEM = "item"
    TIME = "time"
    QUANTITY = "quantity"
    STRING = "string"
    MONOLINGUAL = "monolingual"
    SOMEVALUE = "somevalue"
    NOVALUE = "novalue"


def entity_id(text: str) -> str:
    """Check and normalise an entity id.

    Args:
        text: such as ``Q42`` or ``q42``.

    Returns:
        The id in capitals.

    Raises:
        BadTermError: it is no entity id.
    """
    upper = text.strip().upper()
    if not _ENTITY_ID.fullmatch(upper):
        raise BadTermError(f"{text!r} is not an entity id: write one such as Q42 or P6.", value=text)
    return upper


def id_order(entity: str) -> tuple[str, int]:
    """Sort key of entity ids: by letter, then by number."""
    return entity[:1], int(entity[1:])


def statement_id(text: str) -> str:
    """Normalise a statement id, so that every spelling of one statement is the same key.

    JSON writes ``Q42$GUID``, RDF writes ``Q42-GUID``, and old statements start with a lower-case ``q``. Ids
    that differ by case alone are one id to Wikibase, so all of it is put in capitals.

    Raises:
        BadTermError: it does not start with an entity id.
    """
    entity, mark, guid = text.replace("$", "-", 1).partition("-")
    if not mark or not guid:
        raise BadTermError(f"{text!r} is not a statement id: expected Q42$GUID.", value=text)
    return f"{entity_id(entity)}${guid.upper()}"


def _last_day(year: int, month: int) -> int:
    thirty = {4, 6, 9, 11}
    if month in thirty:
        return 30
    if month != 2:  # noqa: PLR2004  (February)
        return 31
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return 29 if leap else 28


@dataclass(frozen=True, slots=True)
class WikiTime:
    """A date as far as it is known.

    Attributes:
        iso: the date cut to its precision, such as ``2003``, ``2003-05`` or ``-0043-03-15``.
        precision: Wikibase's number: 11 day, 10 month, 9 year, 8 decade, 7 century, 6 millennium, down to 0.
    """

    iso: str
    precision: int

    @classmethod
    def parse(cls, text: str, precision: int) -> WikiTime:
        """Read an RDF or JSON timestamp that is already proleptic Gregorian with astronomical years.

        A month or day of 00 (``+2003-00-00T00:00:00Z``) lowers the precision to what is known; hours are
        dropped.

        Raises:
            BadTermError: it is no timestamp.
        """
        match = _TIME.fullmatch(text.strip())
        if not match:
            raise BadTermError(f"{text!r} is not a Wikibase timestamp.", value=text)
        sign, digits, month_text, day_text = match.groups()
        year, month, day = int(sign + digits), int(month_text), int(day_text)
        return cls.of(year, month, day, precision)

    @classmethod
    def of(cls, year: int, month: int, day: int, precision: int) -> WikiTime:
        """Build from numbers; a month or day of 0 is unknown.

        Raises:
            BadTermError: there is no such date.
        """
        known = min(max(precision, 0), DAY)
        if month == 0:
            known = min(known, YEAR)
        elif day == 0:
            known = min(known, MONTH)
        if known >= MONTH and not 1 <= month <= 12:  # noqa: PLR2004  (months)
            raise BadTermError(f"There is no month {month}.", value=str(month))
        if known >= DAY and not 1 <= day <= _last_day(year, month):
            raise BadTermError(f"There is no day {day} in {year}-{month:02d}.", value=str(day))
        stem = f"-{-year:04d}" if year < 0 else f"{year:04d}"
        if known >= DAY:
            return cls(f"{stem}-{month:02d}-{day:02d}", known)
        return cls(f"{stem}-{month:02d}" if known == MONTH else stem, known)

    def parts(self) -> tuple[int, int, int]:
        """Year, month, day; 0 where unknown."""
        match = _ISO.fullmatch(self.iso)
        if not match:
            raise BadTermError(f"{self.iso!r} is not a cut ISO date.", value=self.iso)
        sign, year, month, day = match.groups()
        return int(sign + year), int(month or 0), int(day or 0)

    def earliest(self) -> datetime:
        """First instant of the span (UTC). Years that ``datetime`` cannot hold are clamped to its ends."""
        year, month, day = self.parts()
        if self.precision >= DAY:
            return _instant(year, month, day)
        if self.precision == MONTH:
            return _instant(year, month, 1)
        return _instant(self._years()[0], 1, 1)

    def latest(self) -> datetime:
        """Last instant of the span (UTC, to the microsecond), clamped likewise."""
        year, month, day = self.parts()
        if self.precision >= DAY:
            start = _instant(year, month, day)
            return start if start in {_FIRST, _LAST} else start + timedelta(days=1) - _NARROWEST
        if self.precision == MONTH:
            next_year, next_month = (year + 1, 1) if month == 12 else (year, month + 1)  # noqa: PLR2004
        else:
            next_year, next_month = self._years()[1] + 1, 1
        after = _instant(next_year, next_month, 1)
        return after if after in {_FIRST, _LAST} else after - _NARROWEST

    def _years(self) -> tuple[int, int]:
        """First and last year. The 20th century is 1901-2000, the 2010s are 2010-2019, as on Wikidata."""
        year = self.parts()[0]
        if self.precision >= YEAR:
            return year, year
        width = 10 ** (YEAR - self.precision)
        if self.precision in {6, 7} and year > 0:
            first = (year - 1) // width * width + 1
        else:
            first = year // width * width
        return first, first + width - 1


def _instant(year: int, month: int, day: int) -> datetime:
    if year < 1:
        return _FIRST
    if year > 9999:  # noqa: PLR2004  (the last year a datetime holds)
        return _LAST
    return datetime(year, month, day, tzinfo=UTC)


def julian_to_gregorian(year: int, month: int, day: int) -> tuple[int, int, int]:
    """Turn a Julian calendar date (astronomical year) into the proleptic Gregorian one, by Julian day number.

    Source: the integer formulas of Richards 2013, "Calendars", in the Explanatory Supplement to the
    Astronomical Almanac; Wikibase's RDF export does the same to dates of day precision.
    """
    shift = (14 - month) // 12
    y, m = year + 4800 - shift, month + 12 * shift - 3
    number = day + (153 * m + 2) // 5 + 365 * y + y // 4 - 32083
    a = number + 32044
    b = (4 * a + 3) // 146097
    c = a - 146097 * b // 4
    d = (4 * c + 3) // 1461
    e = c - 1461 * d // 4
    f = (5 * e + 2) // 153
    return 100 * b + d - 4800 + f // 10, f + 3 - 12 * (f // 10), e - (153 * f + 2) // 5 + 1


@dataclass(frozen=True, slots=True)
class Value:
    """The main value of a statement.

    Attributes:
        kind: what it is.
        canonical: one text per value, by which values are compared. Items: the id. Times: ``iso/precision``.
            Quantities: the plain decimal, then a space and the unit's id if there is one. Strings: NFC.
            Monolingual: ``text@language``. somevalue and novalue: their own names.
    """

    kind: ValueKind
    canonical: str

    @classmethod
    def item(cls, entity: str) -> Value:
        """An item, by id."""
        return cls(ValueKind.ITEM, entity_id(entity))

    @classmethod
    def time(cls, time: WikiTime) -> Value:
        """A date."""
        return cls(ValueKind.TIME, f"{time.iso}/{time.precision}")

    @classmethod
    def quantity(cls, amount: str, unit: str | None) -> Value:
        """A number; ``unit`` is an entity id, or None for a bare number.

        Raises:
            BadTermError: the amount is no finite decimal.
        """
        try:
            number = Decimal(amount)
        except InvalidOperation:
            number = Decimal("NaN")
        if not number.is_finite() or abs(number.adjusted()) >= _MAX_DIGITS:
            raise BadTermError(f"{amount!r} is not a decimal amount.", value=amount)
        plain = format(number, "f")
        if "." in plain:
            plain = plain.rstrip("0").rstrip(".")
        plain = "0" if plain in {"-0", ""} else plain
        return cls(ValueKind.QUANTITY, f"{plain} {entity_id(unit)}" if unit else plain)

    @classmethod
    def string(cls, text: str) -> Value:
        """A plain string, in Unicode's composed form."""
        return cls(ValueKind.STRING, unicodedata.normalize("NFC", text))

    @classmethod
    def monolingual(cls, text: str, language: str) -> Value:
        """A text with its language."""
        return cls(ValueKind.MONOLINGUAL, f"{unicodedata.normalize('NFC', text)}@{language.lower()}")

    @classmethod
    def somevalue(cls) -> Value:
        """There is a value and it is not known."""
        return cls(ValueKind.SOMEVALUE, "somevalue")

    @classmethod
    def novalue(cls) -> Value:
        """There is no value."""
        return cls(ValueKind.NOVALUE, "novalue")

    @property
    def is_known(self) -> bool:
        """Whether there is something to say."""
        return self.kind not in {ValueKind.SOMEVALUE, ValueKind.NOVALUE}


BoundKind = Literal["value", "somevalue", "novalue"]


@dataclass(frozen=True, slots=True)
class Bound:
    """A start or end qualifier. ``time`` is None unless ``kind`` is "value" and the date was readable."""

    kind: BoundKind
    time: WikiTime | None = None


@dataclass(frozen=True, slots=True)
class Statement:
    """One Wikidata claim.

    Attributes:
        id: normalised statement id (`statement_id`).
        subject: entity id.
        property: property id.
        value: the main value.
        rank: its rank.
        start: start time qualifier (P580), or None without one. Of several, the earliest.
        end: end time qualifier (P582), or None without one. Of several, the latest.
        point_in_time: point in time qualifier (P585), of several the latest.
        reference_count: number of references.
        revision: revision of the subject's item when the statement was read; 0 where the source does not say.
    """

    id: str
    subject: str
    property: str
    value: Value
    rank: Rank
    start: Bound | None = None
    end: Bound | None = None
    point_in_time: WikiTime | None = None
    reference_count: int = 0
    revision: int = 0

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, so equal statements are equal texts."""
        return json.dumps(
            self._content() | {"revision": self.revision}, sort_keys=True, separators=(",", ":")
        )

    @classmethod
    def from_json(cls, text: str) -> Statement:
        """Read what `to_json` wrote.

        Raises:
            BadEntityError: it is something else.
        """
        try:
            raw = json.loads(text)
            return cls(
                id=raw["id"],
                subject=raw["subject"],
                property=raw["property"],
                value=Value(ValueKind(raw["value"]["kind"]), raw["value"]["canonical"]),
                rank=Rank(raw["rank"]),
                start=_bound_from(raw["start"]),
                end=_bound_from(raw["end"]),
                point_in_time=_time_from(raw["point_in_time"]),
                reference_count=int(raw["reference_count"]),
                revision=int(raw["revision"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise BadEntityError(
                f"This is not a stored statement: {text[:80]!r}.", entity="", reason="bad-statement-json"
            ) from error

    def content_hash(self) -> str:
        """SHA-256 of all but the revision, which moves with every edit anywhere on the item."""
        text = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def _content(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "subject": self.subject,
            "property": self.property,
            "value": {"kind": self.value.kind.value, "canonical": self.value.canonical},
            "rank": self.rank.value,
            "start": _bound_to(self.start),
            "end": _bound_to(self.end),
            "point_in_time": _time_to(self.point_in_time),
            "reference_count": self.reference_count,
        }


def _time_to(time: WikiTime | None) -> dict[str, Any] | None:
    return None if time is None else {"iso": time.iso, "precision": time.precision}


def _time_from(raw: dict[str, Any] | None) -> WikiTime | None:
    return None if raw is None else WikiTime(raw["iso"], int(raw["precision"]))


def _bound_to(bound: Bound | None) -> dict[str, Any] | None:
    return None if bound is None else {"kind": bound.kind, "time": _time_to(bound.time)}


def _bound_from(raw: dict[str, Any] | None) -> Bound | None:
    return None if raw is None else Bound(raw["kind"], _time_from(raw["time"]))


@dataclass(frozen=True, slots=True)
class Probe:
    """What the source says of an item's version. Neither revision nor redirect means that it is deleted."""

    subject: str
    revision: int | None
    modified_at: datetime | None
    redirect_to: str | None = None

    @property
    def is_deleted(self) -> bool:
        """Whether the item is gone without a successor."""
        return self.revision is None and self.redirect_to is None


@dataclass(frozen=True, slots=True)
class Label:
    """The text by which a model should know an entity, and the language it was found in."""

    entity: str
    text: str
    language: str


Source = tuple[str, int]
"""Statement id and the revision of its item."""


@dataclass(frozen=True, slots=True)
class DesiredFact:
    """What the model should say at the reference time.

    Attributes:
        subject: entity id.
        property: property id.
        slot: empty for functional and one-open relations, the value's canonical text for multi-valued ones.
        value: the object.
        sources: the statements behind it.
        valid_from: the latest start among them, as a cut ISO date.
        flags: things worth knowing, such as ``preferred-ended``.
    """

    subject: str
    property: str
    slot: str
    value: Value
    sources: tuple[Source, ...]
    valid_from: str | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupVerdict:
    """What the statements of one (subject, property) mean at the reference time.

    Attributes:
        subject: entity id.
        property: property id.
        facts: what should be said; empty if vacant, unknown or in conflict.
        vacant: nothing holds: all ended, none there, or an explicit novalue.
        conflict: why no choice can be made, or None.
        flags: things worth knowing.
    """

    subject: str
    property: str
    facts: tuple[DesiredFact, ...]
    vacant: bool
    conflict: str | None = None
    flags: tuple[str, ...] = ()
