"""Entity documents: JSON dump lines, ``Special:EntityData``, ``wbgetentities`` replies.

Reads them into the same statements as the SPARQL feed reads from Wikibase's RDF, date conventions included.
Real documents hold surprises (``[]`` for an empty map, ids without the ``id`` key, eleven-digit years,
cut-off lines), so everything unreadable becomes a named problem: of a statement, a `kb.rows.Skipped`; of a
document, a `BadEntityError`.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kb.endpoint import Namespaces, Properties
from kb.errors import BadEntityError, BadTermError
from kb.model import (
    DAY,
    JULIAN,
    Bound,
    Rank,
    Statement,
    Value,
    WikiTime,
    entity_id,
    id_order,
    julian_to_gregorian,
    last_day,
    statement_id,
)
from kb.rows import Skipped, pick

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

_ENTITY_TYPES = {"wikibase-item", "wikibase-property", "wikibase-lexeme", "wikibase-entityid"}
_TEXT_TYPES = {"string", "external-id", "url", ""}


@dataclass(frozen=True, slots=True)
class Document:
    """One entity document.

    Attributes:
        entity: the id it was asked for or filed under.
        target: the id it was merged into, or None.
        missing: the entity is deleted.
        revision: its revision; 0 where the document does not say.
        modified_at: its modification date, or None.
        labels: text by language.
        statements: in order of property and id.
        skipped: statements that could not be read.
    """

    entity: str
    target: str | None = None
    missing: bool = False
    revision: int = 0
    modified_at: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    statements: tuple[Statement, ...] = ()
    skipped: tuple[Skipped, ...] = ()


class DocumentReader:
    """Reads documents of one Wikibase."""

    def __init__(self, namespaces: Namespaces | None = None, properties: Properties | None = None) -> None:
        self._names = namespaces or Namespaces()
        self._properties = properties or Properties()

    def read(self, raw: object) -> list[Document]:
        """Read a parsed JSON document in any of the known wrappings.

        Args:
            raw: a bare entity, or a reply with ``entities``.

        Returns:
            The documents in it.

        Raises:
            BadEntityError: it is none, or it is an error reply (those come with HTTP 200).
        """
        if not isinstance(raw, dict):
            raise BadEntityError("An entity document is a JSON object.", entity="", reason="not-an-object")
        if "error" in raw:
            error = raw["error"]
            code = error.get("code", "unknown") if isinstance(error, dict) else "unknown"
            raise BadEntityError(
                f"The service answered with the error {code!r}.", entity="", reason="error-reply"
            )
        if "entities" not in raw:
            return [self._entity("", raw)]
        entities = raw["entities"]
        if isinstance(entities, list) and not entities:
            return []
        if not isinstance(entities, dict):
            raise BadEntityError("`entities` is no map of entities.", entity="", reason="bad-entities")
        return [self._entity(str(key), one) for key, one in entities.items()]

    def read_text(self, text: str | bytes) -> list[Document]:
        """Read JSON text.

        Raises:
            BadEntityError: it is no JSON, or no document.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadEntityError(
                f"Not a whole JSON document ({error}); fetch it again.", entity="", reason="bad-json"
            ) from error
        return self.read(raw)

    def _entity(self, key: str, raw: object) -> Document:
        if not isinstance(raw, dict):
            raise BadEntityError(
                f"{key or 'A document'} is no JSON object.", entity=key, reason="not-an-object"
            )
        try:
            own = entity_id(str(raw.get("id") or raw.get("title") or key))
            asked = entity_id(key) if key and key != "-1" else own
        except BadTermError as error:
            raise BadEntityError(
                f"A document without a usable id: {error}", entity=key, reason="bad-id"
            ) from error
        if "missing" in raw:
            return Document(asked, missing=True)
        redirect = raw.get("redirects")
        source = redirect.get("from") if isinstance(redirect, dict) else raw.get("redirect-from")
        if isinstance(raw.get("redirect"), str):
            return Document(asked, target=self._id(raw["redirect"], asked))
        if isinstance(source, str):
            asked = self._id(source, asked)
        revision = raw.get("lastrevid", 0)
        statements, skipped = self._claims(own, raw, revision if isinstance(revision, int) else 0)
        return Document(
            entity=asked,
            target=own if own != asked else None,
            revision=revision if isinstance(revision, int) else 0,
            modified_at=_date(raw.get("modified")),
            labels=_labels(raw.get("labels")),
            statements=tuple(statements),
            skipped=tuple(skipped),
        )

    @staticmethod
    def _id(text: str, fallback: str) -> str:
        try:
            return entity_id(text)
        except BadTermError:
            return fallback

    def _claims(
        self, entity: str, raw: Mapping[str, Any], revision: int
    ) -> tuple[list[Statement], list[Skipped]]:
        claims = raw.get("claims", raw.get("statements")) or {}
        found: list[Statement] = []
        skipped: list[Skipped] = []
        if not isinstance(claims, dict):
            return found, [Skipped("", entity, "", "bad-claims")]
        for prop, group in claims.items():
            for claim in group if isinstance(group, list) else [group]:
                try:
                    found.append(self._statement(entity, str(prop), claim, revision))
                except BadTermError:
                    skipped.append(Skipped(_claim_id(claim), entity, str(prop), "unreadable"))
                except (KeyError, TypeError, AttributeError, ValueError):
                    skipped.append(Skipped(_claim_id(claim), entity, str(prop), "bad-claim"))
        found.sort(key=lambda one: (id_order(one.property), one.id))
        return found, skipped

    def _statement(self, entity: str, prop: str, claim: Mapping[str, Any], revision: int) -> Statement:
        qualifiers = claim.get("qualifiers") or {}
        ids = self._properties
        return Statement(
            id=statement_id(claim["id"]),
            subject=entity,
            property=entity_id(prop),
            value=self._value(claim["mainsnak"]),
            rank=Rank(claim["rank"]),
            start=self._bound(qualifiers, ids.start, earliest=True),
            end=self._bound(qualifiers, ids.end, earliest=False),
            point_in_time=self._latest(qualifiers, ids.point_in_time),
            reference_count=self._sources(claim.get("references") or []),
            revision=revision,
        )

    def _sources(self, references: Iterable[Mapping[str, Any]]) -> int:
        """How many references name a source; the same one twice counts once."""
        ids = self._properties
        found = set()
        for index, one in enumerate(references):
            snaks = one.get("snaks") or {}
            kinds = {prop: {snak["snaktype"] for snak in snaks.get(prop) or []} for prop in snaks}
            named = any("value" in kinds.get(prop, ()) for prop in (ids.stated_in, ids.reference_url))
            imported = kinds.get(ids.imported_from, set()) & {"value", "somevalue"}
            if named and not imported:
                found.add(one.get("hash") or index)
        return len(found)

    def _value(self, snak: Mapping[str, Any]) -> Value:  # noqa: PLR0911  (one return a kind of value)
        if snak["snaktype"] == "somevalue":
            return Value.somevalue()
        if snak["snaktype"] == "novalue":
            return Value.novalue()
        data = snak["datavalue"]
        kind, value, declared = data["type"], data["value"], snak.get("datatype", "")
        if kind == "wikibase-entityid":
            return self._entity_value(value)
        if kind == "time":
            return Value.time(time_of(value))
        if kind == "quantity":
            return self._quantity(value)
        if kind == "monolingualtext":
            return Value.monolingual(value["text"], value["language"])
        if kind == "string" and declared in _TEXT_TYPES:
            return Value.string(value)
        raise BadTermError(f"Values of type {declared or kind} are not read.", value=str(kind))

    def _entity_value(self, value: Mapping[str, Any]) -> Value:
        letter = {"item": "Q", "property": "P", "lexeme": "L"}.get(value.get("entity-type", "item"))
        text = value.get("id") or f"{letter or 'Q'}{int(value['numeric-id'])}"
        try:
            return Value.item(text)
        except BadTermError:
            return Value.string(self._names.wd + text)  # forms, senses and schemas: named, never edited

    def _quantity(self, value: Mapping[str, Any]) -> Value:
        unit = str(value.get("unit", "1"))
        name = unit.rsplit("/", 1)[-1]
        return Value.quantity(str(value["amount"]), None if name in {"1", "Q199"} else name)

    def _times(self, qualifiers: Mapping[str, Any], prop: str) -> tuple[list[WikiTime], set[str]]:
        times, others = [], set()
        for snak in qualifiers.get(prop, []):
            if snak["snaktype"] != "value":
                others.add(snak["snaktype"])
                continue
            try:
                times.append(time_of(snak["datavalue"]["value"]))
            except (BadTermError, KeyError, TypeError):
                others.add("unreadable")
        return times, others

    def _bound(self, qualifiers: Mapping[str, Any], prop: str, *, earliest: bool) -> Bound | None:
        times, others = self._times(qualifiers, prop)
        if times:
            return Bound("value", pick(times, earliest=earliest))
        if "unreadable" in others:
            return Bound("value", None)
        if "somevalue" in others:
            return Bound("somevalue")
        return Bound("novalue") if "novalue" in others else None

    def _latest(self, qualifiers: Mapping[str, Any], prop: str) -> WikiTime | None:
        times, _ = self._times(qualifiers, prop)
        return pick(times, earliest=False) if times else None


def time_of(value: Mapping[str, Any]) -> WikiTime:
    """A JSON time value by the conventions of Wikibase's RDF export.

    JSON counts 1 BCE as year -1 and keeps Julian dates as they are; RDF counts it as year 0, turns Julian
    dates of day precision into Gregorian ones, and takes a month's last day for one past it.

    Raises:
        BadTermError: it is no date.
    """
    text, precision = str(value["time"]), int(value.get("precision", DAY))
    head = text[1:] if text[:1] in "+-" else text
    sign = -1 if text.startswith("-") else 1
    pieces = head.split("T")[0].split("-")
    if len(pieces) != 3 or not all(piece.isascii() and piece.isdigit() for piece in pieces):  # noqa: PLR2004
        raise BadTermError(f"{text!r} is not a Wikibase timestamp.", value=text)
    if len(pieces[0]) > 16:  # noqa: PLR2004  (Wikibase's own bound)
        raise BadTermError(f"{text!r} has too many digits.", value=text)
    year, month, day = sign * int(pieces[0]), int(pieces[1]), int(pieces[2])
    if sign < 0:
        if year == 0:
            raise BadTermError("There is no year -0.", value=text)
        year += 1
    julian = str(value.get("calendarmodel", "")).endswith(JULIAN.rpartition("/")[2])
    if julian and precision >= DAY and month and day:
        if not (1 <= month <= 12 and 1 <= day <= 31):  # noqa: PLR2004  (months and days)
            raise BadTermError(f"There is no date {text!r}.", value=text)
        year, month, day = julian_to_gregorian(year, month, day)
    month = min(month, 12)
    day = min(day, last_day(year, month)) if month else day
    return WikiTime.of(year, month, day, precision, julian=julian)


def _claim_id(claim: object) -> str:
    return str(claim.get("id", "")) if isinstance(claim, dict) else ""


def _date(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


def _labels(raw: object) -> dict[str, str]:
    """Labels by the language they really are in: a fallback's own, not the one it was asked for in."""
    if not isinstance(raw, dict):
        return {}
    found = {}
    for key, one in raw.items():
        if isinstance(one, str):
            found[str(key)] = one
        elif isinstance(one, dict) and isinstance(one.get("value"), str):
            found.setdefault(str(one.get("language", key)), one["value"])
    return found


def read_lines(
    lines: Iterable[str | bytes], reader: DocumentReader | None = None
) -> Iterator[Document | BadEntityError]:
    """Read a JSON dump or JSON lines: one entity a line, with or without the dump's brackets and commas.

    A line that cannot be read is given as the error it would have raised, so that one bad line costs one
    entity.
    """
    reading = reader or DocumentReader()
    for number, line in enumerate(lines, start=1):
        text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
        text = text.strip().rstrip(",")
        if text in {"", "[", "]"}:
            continue
        try:
            yield from reading.read_text(text)
        except BadEntityError as error:
            yield BadEntityError(f"Line {number}: {error}", entity=error.entity, reason=error.reason)


def read_file(path: Path, reader: DocumentReader | None = None) -> Iterator[Document | BadEntityError]:
    """Read a file: a dump or JSON lines (gzip if it ends in ``.gz``), or one document over several lines.

    Raises:
        BadEntityError: the file cannot be opened, or the packing is broken.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if packed else raw
            first = stream.readline()
            if _is_lines(first):
                yield from read_lines(_chain(first, stream), reader)
                return
            try:
                yield from (reader or DocumentReader()).read_text(first + stream.read())
            except BadEntityError as error:
                yield error
    except (OSError, EOFError, zlib.error) as error:
        raise BadEntityError(
            f"{path} cannot be read: {error}.", entity="", reason="unreadable-file"
        ) from error


def _is_lines(first: bytes) -> bool:
    """A dump opens with a bracket alone; JSON lines hold a whole object in the first line."""
    text = first.strip().rstrip(b",")
    if text in {b"[", b""}:
        return True
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text != b"{"
    return True


def _chain(first: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
