"""Why the model says what it says: the facts that bear on a prompt, and what stands behind each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from editor import recall
from flows import models

if TYPE_CHECKING:
    from collections.abc import Iterable

    from editor.model import LanguageModel
    from flows.workspace import Workspace
    from storage.records import Source
    from storage.records.facts import HeldRow
    from storage.records.runs import Model


@dataclass(frozen=True, slots=True)
class Bearing:
    """One live fact about a subject that the prompt names.

    Attributes:
        subject: its item.
        label: its text in the prompts.
        property: its relation.
        name: the relation's name.
        target: what the model was taught.
        checkpoint: digest of the checkpoint that holds it.
        since: when that became live, ISO 8601.
        sources: statements behind the edit, with the revisions they were read at.
        p_base: probability of the target after the prompt, in the base model.
        p_live: likewise in the live model.
    """

    subject: str
    label: str
    property: str
    name: str
    target: str
    checkpoint: str
    since: str
    sources: tuple[Source, ...]
    p_base: float
    p_live: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the models say to a prompt, and the facts behind it, the likeliest answer first."""

    prompt: str
    base: str
    live: str
    facts: tuple[Bearing, ...]


def named_in(prompt: str, held: Iterable[HeldRow]) -> list[HeldRow]:
    """The facts whose subject the prompt names, as whole words, whatever the case."""

    def names(row: HeldRow) -> bool:
        text = re.escape(row.subject_label)
        return re.search(rf"(?<!\w){text}(?!\w)", prompt, re.IGNORECASE) is not None

    return [row for row in held if names(row)]


def explain(ws: Workspace, model: Model, lm: LanguageModel, prompt: str, *, tokens: int) -> Explanation:
    """Ask both models and look the facts up.

    Args:
        ws: the home.
        model: whose ledger.
        lm: the base model; the live edits are added to it.
        prompt: text to complete.
        tokens: how many tokens to add.
    """
    held = named_in(prompt, ws.ledger.live_facts(model))
    pairs = [(prompt, row.label) for row in held]
    base, p_base = recall.completions(lm, [prompt], tokens=tokens)[0], recall.likelihoods(lm, pairs)
    models.put_on(lm, ws.files, ws.ledger.lineage(model))
    live, p_live = recall.completions(lm, [prompt], tokens=tokens)[0], recall.likelihoods(lm, pairs)
    sources = ws.ledger.sources(row.request_id for row in held if row.request_id is not None)
    facts = [
        Bearing(
            row.subject,
            row.subject_label,
            row.property,
            ws.relations[row.property].name if row.property in ws.relations else row.property,
            row.label,
            row.checkpoint,
            f"{row.held_since:%Y-%m-%dT%H:%MZ}",
            () if row.request_id is None else sources.get(row.request_id, ()),
            before.probability,
            after.probability,
        )
        for row, before, after in zip(held, p_base, p_live, strict=True)
    ]
    return Explanation(prompt, base, live, tuple(sorted(facts, key=lambda fact: -fact.p_live)))
