"""Guards: well-known subjects in the templates of edited relations, which keep an edit from spreading."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from editor.keys import KeyReader
from editor.requests import encode_prompt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from editor.model import LanguageModel


@dataclass(frozen=True, slots=True)
class Guards:
    """Keys of prompts whose answers should stay, as the unedited model has them.

    A guard counts in the solve like a live edit that asks for what the model gives anyway. Once its own
    subject is edited it steps aside, and it comes back when that subject is retracted (`editor.write`).

    Attributes:
        subjects: subject text of each key.
        keys: by layer, (n, d_k).
        values: by layer, (n, d): what the unedited matrix gives.
    """

    subjects: tuple[str, ...]
    keys: dict[int, Float[Tensor, "n d_k"]]
    values: dict[int, Float[Tensor, "n d"]]


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


def measured(lm: LanguageModel, asked: Sequence[tuple[str, str]], layers: tuple[int, ...]) -> Guards:
    """Read the keys of (template, subject) pairs, one a distinct text, and what the matrices make of them.

    Args:
        lm: the unedited model.
        asked: see `pairs`.
        layers: which blocks.
    """
    texts: dict[tuple[int, ...], str] = {}
    for template, subject in asked:
        prompt = encode_prompt(lm.tokenizer, template, subject)
        texts.setdefault(prompt.ids[: prompt.lookup + 1], subject)
    reader = KeyReader(lm, list(texts), layers)
    keys = {layer: reader.read(layer)[0].float().cpu() for layer in layers}
    values = {
        layer: (keys[layer].double() @ lm.layers.matrix(lm.model, layer).double().cpu().T).float()
        for layer in layers
    }
    return Guards(tuple(texts.values()), keys, values)
