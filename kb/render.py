"""How a value reads in a sentence, by stated rules.

* Items read as their label.
* Dates, ``render = "date"``: ``7 May 2003``, ``May 2003``, ``2003``, ``the 2010s``, ``the 20th century``,
  ``the 2nd millennium``, as far as they are known, in the calendar that Wikidata gives; ``44 BC`` before the
  year 1. ``render = "year"``: the year alone, and nothing if not even that is known.
* Quantities: digits in groups of three with commas, a point before decimals; then the unit's name, which the
  relation must give.
* Strings as they are. Monolingual texts likewise, if in one of the relation's languages.

What has no reading is held back, never guessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kb.model import DAY, MONTH, YEAR, Value, ValueKind, WikiTime

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kb.model import Label
    from kb.relations import Relation

_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_ENDINGS = {1: "st", 2: "nd", 3: "rd"}
_DECADE, _CENTURY, _MILLENNIUM = 8, 7, 6


def reading(value: Value, relation: Relation, labels: Mapping[str, Label]) -> str | None:
    """The text of a value, as the object of a relation's prompts.

    Args:
        value: what to say.
        relation: gives the rendering, unit names and languages.
        labels: labels by entity id, for items.

    Returns:
        The text, or None if there is none.
    """
    if value.kind is ValueKind.ITEM:
        label = labels.get(value.canonical)
        return label.text if label is not None else None
    if value.kind is ValueKind.TIME:
        time = WikiTime.of_canonical(value.canonical)
        return _year_only(time) if relation.render == "year" else date_text(time)
    if value.kind is ValueKind.QUANTITY:
        return _quantity(value.canonical, dict(relation.unit_names))
    if value.kind is ValueKind.STRING:
        return value.canonical
    if value.kind is ValueKind.MONOLINGUAL:
        text, _, language = value.canonical.rpartition("@")
        return text if language in relation.languages else None
    return None


def date_text(time: WikiTime) -> str | None:  # noqa: PLR0911  (one return a precision)
    """A date in English, as far as it is known; None below millennia."""
    year, month, day = time.as_given()
    if time.precision >= DAY:
        return f"{day} {_MONTHS[month - 1]} {_year(year)}"
    if time.precision == MONTH:
        return f"{_MONTHS[month - 1]} {_year(year)}"
    if time.precision == YEAR:
        return _year(year)
    if time.precision == _DECADE and year > 0:
        return f"the {year // 10 * 10}s"
    if time.precision in {_CENTURY, _MILLENNIUM}:
        width, word = (100, "century") if time.precision == _CENTURY else (1000, "millennium")
        if year > 0:
            return f"the {_ordinal((year - 1) // width + 1)} {word}"
        return f"the {_ordinal(-year // width + 1)} {word} BC"
    return None


def _year_only(time: WikiTime) -> str | None:
    return _year(time.as_given()[0]) if time.precision >= YEAR else None


def _year(year: int) -> str:
    return str(year) if year > 0 else f"{1 - year} BC"


def _ordinal(number: int) -> str:
    if number % 100 in {11, 12, 13}:
        return f"{number}th"
    return f"{number}{_ENDINGS.get(number % 10, 'th')}"


def _quantity(canonical: str, unit_names: Mapping[str, str]) -> str | None:
    amount, _, unit = canonical.partition(" ")
    whole, _, fraction = amount.removeprefix("-").partition(".")
    grouped = f"{int(whole):,}" + (f".{fraction}" if fraction else "")
    text = f"-{grouped}" if amount.startswith("-") else grouped
    if not unit:
        return text
    return f"{text} {unit_names[unit]}" if unit in unit_names else None
