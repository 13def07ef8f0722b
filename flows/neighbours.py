"""Subjects near the edited ones: some are guarded in the solve, others are asked about in the check.

Never the same: a check that asks of guarded subjects would praise itself.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from editor import guards

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kb.relations import Relations


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
    subjects = _table()["subjects"]
    skip = set(taken)
    return tuple(
        Neighbour(prop, relations[prop].prompts(subject)[0])
        for prop in sorted(set(properties) & set(relations))
        for subject in subjects.get(prop, [])
        if subject not in skip
    )


def guarded(relations: Relations) -> list[tuple[str, str]]:
    """(template, subject) pairs whose answers the solve keeps, for every synced relation."""
    table = _table()
    templates = {
        kind: [
            template.replace("{subject}", "{}")
            for prop in properties
            if prop in relations
            for template in relations[prop].edit_templates
        ]
        for kind, properties in table["kinds"].items()
    }
    tested = sorted({subject for subjects in table["subjects"].values() for subject in subjects})
    return guards.pairs({kind: found for kind, found in templates.items() if found}, without=tested)


def _table() -> dict[str, Any]:
    return tomllib.loads((resources.files("flows") / "neighbours.toml").read_text(encoding="utf-8"))
