"""The wordings that a fact is taught in: its templates, and again with holes, behind random texts or not."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import TYPE_CHECKING

from editor.errors import SubjectNotInPromptError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from editor.requests import EditRequest

PLACE = "{}"
"""Where a template takes the subject."""


def thinned(template: str, share: float, seed: str) -> str:
    """Leave words out of a template, never the one that holds the subject.

    A target state that was found behind one wording answers that wording. Behind wordings with holes it has
    to answer whatever asks about the subject in words like these (word dropout; Iyyer et al. 2015,
    doi 10.3115/v1/P15-1162).

    Args:
        template: text with one ``{}``.
        share: how likely each word is left out, in [0, 1].
        seed: one seed thins one template alike for all subjects, so that they still share how it opens.

    Returns:
        The words that are left, one space between; the template itself where the share is 0, or where the
        subject alone would be left, which asks for nothing.
    """
    if not share:
        return template
    drawn = random.Random(f"{seed}\n{template}")  # noqa: S311 - no secret
    left = [word for word in template.split() if PLACE in word or drawn.random() >= share]
    return " ".join(left) if len(left) > 1 else template


def contexts(prompts: Sequence[str], prefixes: Sequence[str] = (), word_dropout: float = 0.0) -> list[str]:
    """Return the templates that a fact is taught with: as they stand, and again with words left out.

    Args:
        prompts: a fact's templates, at least one.
        prefixes: texts to put before those with holes, each in turn.
        word_dropout: share of the words that is left out.

    Returns:
        Templates, each once; those that the fact is asked with come first.
    """
    again = [(prefix, thinned(one, word_dropout, prefix)) for prefix in prefixes or ("",) for one in prompts]
    return list(dict.fromkeys([*prompts, *(f"{prefix} {holed}".lstrip() for prefix, holed in again)]))


def wordings(
    facts: Sequence[EditRequest], prefixes: Sequence[str] = (), word_dropout: float = 0.0
) -> list[tuple[int, str]]:
    """Return what the facts of one subject are taught with (`contexts`).

    Args:
        facts: of one subject.
        prefixes: as for `contexts`.
        word_dropout: as for `contexts`.

    Returns:
        (index of the fact, template), fact after fact. What several of them come down to without some of
        their words asks for none of them, and is left out; not so where they are objects of one relation,
        with the same templates.

    Raises:
        SubjectNotInPromptError: a fact has no template.
    """
    for fact in facts:
        if not fact.prompts:
            raise SubjectNotInPromptError(f"Fact {fact.fact_id!r} has no template.", fact_id=fact.fact_id)
    found = [
        (index, template)
        for index, fact in enumerate(facts)
        for template in contexts(fact.prompts, prefixes, word_dropout)
    ]
    asking: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for index, template in found:
        asking[template].add(facts[index].prompts)
    return [
        (index, template)
        for index, template in found
        if len(asking[template]) == 1 or template in facts[index].prompts
    ]
