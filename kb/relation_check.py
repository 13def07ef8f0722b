"""Does a relations file hold together? Finds every problem, not the first."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SLOT = "{subject}"
MIN_EDIT = 4
MIN_HELDBACK = 3
_PROPERTY = re.compile(r"P[1-9][0-9]*", re.ASCII)
_CLASS = re.compile(r"Q[1-9][0-9]*", re.ASCII)
_CARDINALITIES = ("functional", "one_open", "multi")
_ENDED = ("retract", "vacate", "vacant", "former")
_OBJECT = "{object}"
_DATATYPES = ("item", "time", "quantity", "string", "monolingual")
_RENDER = {
    "": _DATATYPES,
    "date": ("time",),
    "year": ("time",),
    "number": ("quantity",),
    "text": ("string", "monolingual"),
}
"""Which datatypes a rendering is of."""
KINDS = ("country", "company", "club", "city", "office", "person", "organisation")
"""What the editor knows subjects of, whose answers it can keep."""
_KEYS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "cardinality": str,
    "ended": str,
    "hold_hours": int,
    "edit": list,
    "heldback": list,
    "classes": list,
    "not_values": list,
    "vacant_text": str,
    "former_text": str,
    "datatype": str,
    "series": bool,
    "render": str,
    "unit_names": dict,
    "languages": list,
    "kind": (str, list),
    "neighbours": list,
}
_REQUIRED = ("name", "cardinality", "edit", "heldback")


def problems(raw: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Check tables by property id.

    Args:
        raw: what TOML gave.

    Returns:
        One sentence a problem, in the file's order; empty if all is well.
    """
    found = [problem for key, table in raw.items() for problem in _table(key, table)]
    owners: dict[str, str] = {}
    for key, table in raw.items():
        for template in _templates(table, "edit") + _templates(table, "heldback"):
            shape = _plain(template)
            if shape in owners and owners[shape] != key:
                found.append(f"{key}: the template {template!r} is also one of {owners[shape]}.")
            owners.setdefault(shape, key)
    return found


def _templates(table: Mapping[str, Any], kind: str) -> list[str]:
    given = table.get(kind, [])
    return [one for one in given if isinstance(one, str)] if isinstance(given, list) else []


def _plain(template: str) -> str:
    return " ".join(re.sub(r"[^\w{} ]", " ", template.lower()).split())


def _table(key: str, table: Mapping[str, Any]) -> Iterator[str]:
    if not _PROPERTY.fullmatch(key):
        yield f"{key}: not a property id such as P6."
    for name in table:
        if name not in _KEYS:
            yield f"{key}: unknown key {name!r}."
        elif not isinstance(table[name], _KEYS[name]) or (
            _KEYS[name] is int and isinstance(table[name], bool)
        ):
            yield f"{key}: {name} has the wrong type."
    missing = [name for name in _REQUIRED if name not in table]
    if missing:
        yield f"{key}: lacks {', '.join(missing)}."
    yield from _choices(key, table)
    yield from _suppression(key, table)
    for name in ("classes", "not_values"):
        for one in table.get(name, []) if isinstance(table.get(name, []), list) else []:
            if not isinstance(one, str) or not _CLASS.fullmatch(one):
                yield f"{key}: {name} holds {one!r}, which is no class id such as Q5."
    yield from _beside(key, table)
    yield from _all_templates(key, table)


def _choices(key: str, table: Mapping[str, Any]) -> Iterator[str]:
    for name, allowed in (
        ("cardinality", _CARDINALITIES),
        ("ended", _ENDED),
        ("datatype", _DATATYPES),
        ("render", tuple(_RENDER)),
    ):
        if name in table and table[name] not in allowed:
            words = ", ".join(word for word in allowed if word)
            yield f"{key}: {name} is {table[name]!r}, not one of {words}."
    render, datatype = table.get("render", ""), table.get("datatype", "item")
    if render in _RENDER and datatype in _DATATYPES and datatype not in _RENDER[render]:
        yield f"{key}: render is {render!r}, which no value of datatype {datatype!r} reads as."
    hold = table.get("hold_hours", 0)
    if isinstance(hold, int) and not 0 <= hold <= 24 * 365:
        yield f"{key}: hold_hours must be between 0 and a year."
    if table.get("series") is True and table.get("cardinality") == "multi":
        yield f"{key}: a series keeps one value, so it cannot be multi."


def _suppression(key: str, table: Mapping[str, Any]) -> Iterator[str]:
    """What is said of an ended value must be there, and must fit one value at a time."""
    ended, former = table.get("ended"), table.get("former_text", "")
    if ended == "vacant" and not table.get("vacant_text"):
        yield f"{key}: ended is 'vacant', so vacant_text must say what is true then."
    if ended == "former" and not former:
        yield f"{key}: ended is 'former', so former_text must say what is true then."
    if isinstance(former, str) and former and former.count(_OBJECT) != 1:
        yield f"{key}: former_text needs exactly one {_OBJECT}."
    if ended in {"vacant", "former"} and table.get("cardinality") == "multi":
        yield f"{key}: ended is {ended!r}, but of several values one that ended is retracted."


def _beside(key: str, table: Mapping[str, Any]) -> Iterator[str]:
    """Kinds are known ones, and neighbours are labels."""
    kinds, neighbours = table.get("kind", []), table.get("neighbours", [])
    for one in kinds if isinstance(kinds, list) else [kinds]:
        if one not in KINDS:
            yield f"{key}: kind is {one!r}, not one of {', '.join(KINDS)}."
    if isinstance(neighbours, list) and not all(isinstance(one, str) and one.strip() for one in neighbours):
        yield f"{key}: neighbours holds something that is no label."


def _all_templates(key: str, table: Mapping[str, Any]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for kind, least in (("edit", MIN_EDIT), ("heldback", MIN_HELDBACK)):
        given = table.get(kind, [])
        templates = _templates(table, kind)
        if isinstance(given, list) and len(templates) != len(given):
            yield f"{key}: {kind} holds something that is no text."
        if kind in table and len(templates) < least:
            yield f"{key}: {kind} needs at least {least} templates, it has {len(templates)}."
        for template in templates:
            yield from (f"{key}: {fault} in {template!r}." for fault in _template(template))
            if kind == "edit" and template.startswith(SLOT):
                # A text's first token is where models rest their attention: no fact holds there.
                yield f"{key}: no word before the subject in {template!r}."
            shape = _plain(template)
            if shape in seen:
                yield f"{key}: {template!r} stands twice."
            seen[shape] = kind
    if table.get("edit") and len({_opening(one) for one in _templates(table, "edit")}) < MIN_EDIT - 1:
        yield f"{key}: the edit templates all begin alike; vary the kind of sentence."


def _opening(template: str) -> str:
    return " ".join(template.split()[:2]).lower()


def _template(template: str) -> Sequence[str]:
    """What is wrong with one template: it names the subject once, and stops where the object follows."""
    faults = []
    if template.count(SLOT) != 1:
        faults.append("not exactly one {subject}")
    rest = template.replace(SLOT, "")
    if "{" in rest or "}" in rest:
        faults.append("a brace other than {subject}")
    if template != template.strip() or "  " in template or "\n" in template:
        faults.append("stray white space")
    if template.rstrip().endswith(SLOT):
        faults.append("the subject right before the object, with no word between them")
    if template.rstrip().endswith((".", "!", "?", ":", ";")):
        faults.append("a sentence that is over before the object")
    if template[:1].islower():
        faults.append("a lower-case beginning")
    if re.search(r"\b(a|an)$", template):
        faults.append("an article that fits only some objects at the end")
    if not re.search(r"\w", rest):
        faults.append("no words")
    return faults
