"""Putting values into queries. Nothing enters a query text but what these functions let through.

SPARQL has no bound parameters over HTTP, so safety rests on two rules: ids are matched whole against their
grammar before they become IRIs, and literals are escaped by SPARQL's own rules. Names left unbound are an
error.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from kb.errors import BadTermError
from kb.model import entity_id, is_writable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kb.endpoint import Namespaces

_PLACE = re.compile(r"\$([a-z_]+)")
_PREFIX = re.compile(r"^PREFIX ([a-z]+): <([^>]*)>$", re.MULTILINE)
IRI = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:[^\x00-\x20<>\"{}|^`\\]*")
_LANGUAGE = re.compile(r"[a-z]{2,8}(-[a-z0-9]{1,8})*", re.ASCII)
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


class Term(str):
    """Checked SPARQL text. Only the functions of this module make one; only these are put into queries."""

    __slots__ = ()


def iri(text: str) -> Term:
    """An absolute IRI in angle brackets.

    Raises:
        BadTermError: a character that SPARQL does not allow between the brackets.
    """
    if not IRI.fullmatch(text):
        raise BadTermError(f"{text!r} is not an IRI.", value=text)
    return Term(f"<{text}>")


def literal(text: str) -> Term:
    """A plain string literal.

    Raises:
        BadTermError: it holds a lone surrogate or NUL, which no query can carry.
    """
    if not is_writable(text):
        raise BadTermError(
            "A text with NUL or half a surrogate pair cannot be put into a query.", value=repr(text)
        )
    return Term('"' + "".join(_ESCAPES.get(char, char) for char in text) + '"')


def date(at: datetime) -> Term:
    """A ``xsd:dateTime`` in UTC, to the second (Wikibase's own resolution).

    Raises:
        BadTermError: the datetime has no time zone.
    """
    if at.tzinfo is None:
        raise BadTermError("A window's bounds need a time zone.", value=str(at))
    return Term(f'"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S}Z"^^<http://www.w3.org/2001/XMLSchema#dateTime>')


def number(count: int) -> Term:
    """A non-negative integer.

    Raises:
        BadTermError: it is negative.
    """
    if isinstance(count, bool) or count < 0:
        raise BadTermError("A row limit cannot be negative.", value=str(count))
    return Term(str(int(count)))


def entities(namespace: str, ids: Iterable[str]) -> Term:
    """IRIs of entities, for a VALUES block.

    Raises:
        BadTermError: one of them is no entity id.
    """
    return Term(" ".join(iri(namespace + entity_id(one)) for one in ids))


def listed(*terms: Term) -> Term:
    """Terms of one or more IRIs each, as the comma-separated list that ``IN`` takes."""
    return Term(", ".join(" ".join(terms).split(" ")))


def languages(chain: Iterable[str], variable: str = "?label") -> Term:
    """A condition that a variable's language is in a chain such as ``("en", "mul", "en-*")``.

    Raises:
        BadTermError: an entry is no language code.
    """
    tests = []
    for entry in chain:
        code = entry.removesuffix("-*")
        if not _LANGUAGE.fullmatch(code):
            raise BadTermError(f"{entry!r} is not a language code.", value=entry)
        tests.append(
            f'STRSTARTS(LCASE(LANG({variable})), "{code}-")'
            if entry.endswith("-*")
            else f'LCASE(LANG({variable})) = "{code}"'
        )
    if not tests:
        raise BadTermError("The label chain is empty.", value="")
    return Term(" || ".join(tests))


@cache
def _text(name: str) -> str:
    return (resources.files("kb") / "queries" / f"{name}.rq").read_text(encoding="utf-8")


def query(query_name: str, namespaces: Namespaces, **values: Term) -> str:
    """Read ``queries/<name>.rq``, set its prefixes to one Wikibase's, and put the values in.

    Raises:
        BadTermError: a place without a value, a value without a place, or a value that is no checked term.
    """
    text = _PREFIX.sub(
        lambda m: f"PREFIX {m[1]}: {iri(getattr(namespaces, m[1], m[2]))}",
        _text(query_name),
    )
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    places = set(_PLACE.findall(body))
    if places != set(values) or not all(isinstance(value, Term) for value in values.values()):
        raise BadTermError(
            f"Query {query_name} takes {sorted(places)} as checked terms, not {sorted(values)}.",
            value=query_name,
        )
    return _PLACE.sub(lambda m: values[m[1]], body)
