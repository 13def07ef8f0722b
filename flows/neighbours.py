"""Subjects near the edited ones: some are guarded in the solve, others are asked about in the check.

Never the same: a check that asks of guarded subjects would praise itself. `neighbours.toml` says which they
are for the shipped relations; the keys `kind` and `neighbours` of a user's file say it for others, or in its
place.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from editor import guards

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kb.relations import Relation, Relations


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A prompt about a subject that no edit is about."""

    property: str
    prompt: str


def asked(relations: Relations, properties: Iterable[str], taken: Iterable[str]) -> tuple[Neighbour, ...]:
    """Prompts to check with.

    Args:
        relations: what is synced.
        properties: relations that are edited or live.
        taken: subjects that the model holds facts of; they are left out.
    """
    shipped, skip = _table()["subjects"], set(taken)
    chosen = [relations[prop] for prop in sorted(set(properties) & set(relations))]
    return tuple(
        Neighbour(one.property, one.prompts(subject)[0])
        for one in chosen
        for subject in one.neighbours or (shipped.get(one.property, ()) if one.shipped else ())
        if subject not in skip
    )


def guarded(relations: Relations) -> list[tuple[str, str]]:
    """(template, subject) pairs whose answers the solve keeps, for every synced relation."""
    table = _table()
    templates = {
        kind: [
            template.replace("{subject}", "{}")
            for one in _of_kind(kind, relations, table["kinds"].get(kind, ()))
            for template in one.edit_templates
        ]
        for kind in guards.subjects()
    }
    tested = {subject for subjects in table["subjects"].values() for subject in subjects}
    own = {subject for one in relations.values() for subject in one.neighbours}
    return guards.pairs(templates, without=sorted(tested | own))


def _of_kind(kind: str, relations: Relations, shipped: Iterable[str]) -> list[Relation]:
    """The shipped ones first and in their file's order: second moments are kept by what comes of it."""
    listed = [relations[prop] for prop in shipped if prop in relations]
    as_shipped = [one for one in listed if one.shipped and not one.kinds]
    return as_shipped + [one for one in relations.values() if kind in one.kinds]


def _table() -> dict[str, Any]:
    return tomllib.loads((resources.files("flows") / "neighbours.toml").read_text(encoding="utf-8"))
