"""The words of the knowledge side: frozen, plain, and the same whatever the statements came from."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from kb.errors import BadEntityError, BadTermError
from kb.wikitime import (
    DAY,
    JULIAN,
    MONTH,
    YEAR,
    WikiTime,
    gregorian_to_julian,
    julian_to_gregorian,
    last_day,
)

if TYPE_CHECKING:
    from datetime import datetime

__all__ = [
    "DAY",
    "JULIAN",
    "MONTH",
    "YEAR",
    "Bound",
    "DesiredFact",
    "GroupVerdict",
    "Label",
    "Probe",
    "Rank",
    "Source",
    "Statement",
    "Value",
    "ValueKind",
    "WikiTime",
    "entity_id",
    "gregorian_to_julian",
    "id_order",
    "is_writable",
    "julian_to_gregorian",
    "last_day",
    "statement_id",
]

_ENTITY_ID = re.compile(r"[QPL][1-9][0-9]{0,17}", re.ASCII)
_UNWRITABLE = re.compile(r"[\x00\ud800-\udfff]")
_MAX_DIGITS = 127  # what Wikibase holds


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


def is_writable(text: str) -> bool:
    """Whether a text can be put into a query or a ledger: it holds no NUL and no half of a surrogate pair."""
    return _UNWRITABLE.search(text) is None


def _composed(text: str) -> str:
    if not is_writable(text):
        raise BadTermError("A text with NUL or half a surrogate pair cannot be kept.", value=repr(text))
    return unicodedata.normalize("NFC", text)


def statement_id(text: str) -> str:
    """Normalise a statement id, so that every spelling of one statement is the same key.

    JSON writes ``Q42$GUID``, RDF writes ``Q42-GUID``, and old statements start with a lower-case ``q``. Ids
    that differ by case alone are one id to Wikibase, so all of it is put in capitals.

    Raises:
        BadTermError: it does not start with an entity id, or cannot be written.
    """
    entity, mark, guid = text.replace("$", "-", 1).partition("-")
    if not mark or not guid or not is_writable(guid):
        raise BadTermError(f"{text!r} is not a statement id: expected Q42$GUID.", value=text)
    return f"{entity_id(entity)}${guid.upper()}"


@dataclass(frozen=True, slots=True)
class Value:
    """The main value of a statement.

    Attributes:
        kind: what it is.
        canonical: one text per value, by which values are compared. Items: the id. Times: that of `WikiTime`.
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
        return cls(ValueKind.TIME, time.canonical)

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
        """A plain string, in Unicode's composed form.

        Raises:
            BadTermError: it cannot be written.
        """
        return cls(ValueKind.STRING, _composed(text))

    @classmethod
    def monolingual(cls, text: str, language: str) -> Value:
        """A text with its language.

        Raises:
            BadTermError: it cannot be written.
        """
        return cls(ValueKind.MONOLINGUAL, _composed(f"{text}@{language.lower()}"))

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
        reference_count: number of references that name a source (`kb.endpoint.Properties`).
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
    if time is None:
        return None
    known = {"iso": time.iso, "precision": time.precision}
    return known | {"julian": True} if time.julian else known


def _time_from(raw: dict[str, Any] | None) -> WikiTime | None:
    if raw is None:
        return None
    return WikiTime(raw["iso"], int(raw["precision"]), raw.get("julian", False))


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
        flags: things worth knowing, such as ``preferred-not-open``.
        references: references that name a source, of the statement that has most of them.
    """

    subject: str
    property: str
    slot: str
    value: Value
    sources: tuple[Source, ...]
    valid_from: str | None = None
    flags: tuple[str, ...] = ()
    references: int = 0


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
        ended: values of which a statement says that they ended; one that is in none was removed.
    """

    subject: str
    property: str
    facts: tuple[DesiredFact, ...]
    vacant: bool
    conflict: str | None = None
    flags: tuple[str, ...] = ()
    ended: frozenset[Value] = frozenset()
