"""Which label a model should learn, and which labels no model should.

Wikidata moves English labels that equal the name itself to the language-neutral ``mul``, so the chain is
English, then ``mul``, then any variant of English. There is no "first language found": without a label in the
chain an entity has none, and what needs it is held back.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections import defaultdict
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from kb.model import Label, id_order, is_writable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

CHAIN = ("en", "mul", "en-*")
MAX_CHARS = 120
_JOINERS = "\u200c\u200d"
_VARIANTS = ("en-gb", "en-us", "en-ca")  # the variants by use; the rest by name
_ENTITY = re.compile(r"[QPL][1-9][0-9]*", re.ASCII)
_URL = re.compile(r"https?:|www\.|\.(com|org|net)/", re.IGNORECASE)
_UNSEEN = dict.fromkeys(map(ord, "\u00ad\u200e\u200f\ufeff"))
"""They come along when a name is copied from a page. Overrides of direction, which deceive, are not here."""
_RUN = re.compile(r"([^\W\d_])\1{3,}", re.IGNORECASE)


def choose(candidates: Mapping[str, str], chain: Sequence[str] = CHAIN) -> tuple[str, str] | None:
    """Pick a label by the chain.

    Args:
        candidates: text by language code.
        chain: language codes in order; ``en-*`` stands for every variant of English.

    Returns:
        Text and language, or None if no language of the chain is there.
    """
    found = {language.lower(): tidy(text) for language, text in candidates.items()}
    found = {language: text for language, text in found.items() if text and is_writable(language + text)}
    for entry in chain:
        if entry.endswith("-*"):
            stem = entry[:-1]
            variants = sorted(
                (language for language in found if language.startswith(stem)),
                key=lambda language: (
                    _VARIANTS.index(language) if language in _VARIANTS else len(_VARIANTS),
                    language,
                ),
            )
            if variants:
                return found[variants[0]], variants[0]
        elif entry in found:
            return found[entry], entry
    return None


def tidy(text: str) -> str:
    """One line, composed Unicode, single spaces, nothing unseen: its spelling, never what it says."""
    return " ".join(unicodedata.normalize("NFC", text.translate(_UNSEEN)).split())


@cache
def _insults() -> frozenset[str]:
    text = (resources.files("kb") / "insults.toml").read_text(encoding="utf-8")
    return frozenset(tomllib.loads(text)["words"])


def _unprintable(text: str) -> bool:
    # the zero-width joiners belong to the spelling of some names
    return any(
        unicodedata.category(char) in {"Cc", "Cf", "Co", "Cs", "Cn"} for char in text if char not in _JOINERS
    )


def _not_latin(text: str) -> bool:
    letters = [char for char in text if char.isalpha()]
    return sum(_is_latin(char) for char in letters) * 2 < len(letters)


_SHAPES: tuple[tuple[str, Callable[[str], object]], ...] = (  # the first that applies names the fault
    ("empty", lambda text: not text.strip()),
    ("too-long", lambda text: len(text) > MAX_CHARS),
    ("control-characters", _unprintable),
    ("an-id", _ENTITY.fullmatch),
    ("an-address", lambda text: _URL.search(text) or "@" in text),
    ("markup", lambda text: any(mark in text for mark in ("{{", "[[", "<", ">", "|"))),
    ("no-letters", lambda text: not any(char.isalnum() for char in text)),
    ("other-script", _not_latin),
    ("repeated-characters", lambda text: _RUN.search(text) or "!!" in text or "??" in text),
)


def shape_problem(text: str, extra_words: Iterable[str] = ()) -> str | None:
    """Why a label does not look like a name.

    Args:
        text: the label.
        extra_words: further words that no label may hold, besides the built-in insults.

    Returns:
        A short reason, or None if the shape is fine. Fine is not the same as true.
    """
    for reason, applies in _SHAPES:
        if applies(text):
            return reason
    words = set(re.findall(r"[a-z]+", text.lower()))
    if words & (_insults() | {word.lower() for word in extra_words}):
        return "insult"
    return None


def _is_latin(char: str) -> bool:
    return char.isascii() or unicodedata.name(char, "").startswith(
        ("LATIN", "MODIFIER LETTER", "FEMININE", "MASCULINE")
    )


def shared(labels: Iterable[Label]) -> frozenset[str]:
    """Entities whose label another entity bears too, so that a prompt could not tell them apart.

    Args:
        labels: the labels of everything tracked, one an entity.

    Returns:
        Entity ids. Case is folded: "the who" and "The Who" are one text to a reader.
    """
    bearers: defaultdict[str, set[str]] = defaultdict(set)
    for label in labels:
        bearers[label.text.casefold()].add(label.entity)
    return frozenset(entity for entities in bearers.values() if len(entities) > 1 for entity in entities)


def first_choices(rows: Iterable[tuple[str, str, str]], chain: Sequence[str] = CHAIN) -> dict[str, Label]:
    """Labels by entity, from (entity, language, text); without one in the chain they are absent."""
    by_entity: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for entity, language, text in rows:
        key = language.lower()
        # two labels in one language cannot both be current: a replica in between; the smaller is as good as
        # any
        by_entity[entity][key] = min(text, by_entity[entity].get(key, text))
    chosen = {}
    for entity in sorted(by_entity, key=id_order):
        choice = choose(by_entity[entity], chain)
        if choice is not None:
            chosen[entity] = Label(entity, *choice)
    return chosen
