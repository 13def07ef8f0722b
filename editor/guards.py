"""Well-known subjects to guard: in the templates of edited relations they keep an edit from spreading."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def subjects() -> dict[str, tuple[str, ...]]:
    """Return the shipped subjects by kind: country, company, club, city, office, person, organisation."""
    text = resources.files("editor").joinpath("guards.toml").read_text(encoding="utf-8")
    return {kind: tuple(names) for kind, names in tomllib.loads(text).items()}


def pairs(templates: Mapping[str, Sequence[str]], *, without: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Put the guard subjects of each kind into that kind's templates.

    Args:
        templates: by kind, templates with one ``{}``.
        without: subjects to leave out, such as those that neighbour checks ask about.

    Returns:
        (template, subject) pairs for `Moments.compute(guards=...)`.
    """
    left_out = {name.casefold() for name in without}
    known = subjects()
    return [
        (template, subject)
        for kind, kind_templates in sorted(templates.items())
        for template in dict.fromkeys(kind_templates)
        for subject in known.get(kind, ())
        if subject.casefold() not in left_out
    ]
