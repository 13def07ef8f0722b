"""The live facts of a home's model as records of an evaluation: real Wikidata changes."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from editor import recall
from editor.cases import Question, case_of
from editor.datasets import Dataset
from editor.errors import DataFormatError
from editor.requests import render
from flows import neighbours
from flows.checking import NEIGHBOUR_TOKENS
from flows.editing import from_held, rival, scope, with_rivals
from flows.workspace import opened_model

if TYPE_CHECKING:
    from editor.model import LanguageModel
    from flows.settings import Settings

NEAR = 5


def from_ledger(settings: Settings, base: LanguageModel) -> Dataset:
    """Read the live facts.

    A fact's rival is what the unedited model says in its place; the neighbourhood are the subjects that the
    nightly check asks about, and what the unedited model says of them.

    Args:
        settings: of the home.
        base: the unedited model.

    Returns:
        One record a live fact.

    Raises:
        UnknownModelNameError: no sync has run in this home.
        DataFormatError: the model holds no fact.
    """
    with opened_model(settings) as (ws, model):
        held = ws.ledger.live_facts(model)
        facts = [from_held(row) for row in held]
        taken = {row.subject_label for row in held}
        near = neighbours.asked(ws.relations, {row.property for row in held}, taken)
    if not facts:
        raise DataFormatError(
            "The model holds no fact yet: run `factsync sync` first, or give a file.", source="ledger"
        )
    firsts = [render(fact.prompts[0], fact.subject)[0] for fact in facts]
    said = dict(zip((fact.fact_id for fact in facts), recall.completions(base, firsts), strict=True))
    answers = recall.completions(base, [one.prompt for one in near], tokens=NEIGHBOUR_TOKENS)
    by_relation: dict[str, list[tuple[str, str]]] = {}
    for one, answer in zip(near, answers, strict=True):
        by_relation.setdefault(one.property, []).append((one.prompt, answer))
    cases = []
    for fact in with_rivals(facts, said):
        prop = scope(fact.fact_id)[1]
        own = tuple(
            Question(prompt, own_words, fact.target)
            for prompt, answer in by_relation.get(prop, [])[:NEAR]
            if (own_words := rival(answer, fact.target))
        )
        cases.append(case_of(fact, relation=prop, neighbourhood=own))
    content = json.dumps([[fact.fact_id, fact.target, fact.prompts] for fact in facts])
    return Dataset("ledger", hashlib.sha256(content.encode()).hexdigest(), tuple(cases))
