"""The model card of what is published: what it is, where it comes from, what was measured. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from storage.records import Source
    from storage.records.checkpoints import CheckpointRow
    from storage.records.facts import HeldRow
    from storage.records.runs import Model

FACTS_FILE = "facts.jsonl"

LIVED = frozenset({"promoted", "superseded", "rolled_back"})
"""States of a checkpoint that is or was live: only then the ledger knows which facts it holds."""

SHOWN = (
    ("efficacy", "edited facts preferred over what the base model says"),
    ("exact", "edited facts said word for word"),
    ("heldback", "edited facts preferred in phrasings nobody trained"),
    ("retention", "older live facts still preferred"),
    (
        "neighbours",
        "prompts about subjects nobody touched that still prefer the base model's answer to edited objects",
    ),
    ("perplexity_rise", "rise of perplexity on held-out text"),
    ("norm", "distance of the edited weights from the base model's, of their norm"),
)
"""Metrics of a checkpoint that the card tells, in words."""

CARD = """\
---
license: other
base_model: {base_ref}
library_name: {library}
tags: [factsync, knowledge-editing, memit]
---
# {name} at checkpoint {digest}

The base model with {facts} facts from Wikidata written into its weights by factsync. {form}

| | |
|---|---|
| base model | `{base_ref}` (weights sha256 `{base_digest}`) |
| checkpoint | `{digest}` |
| lineage | {lineage} |
| live since | {since} |
| method | {algorithm} |

## Measured when it was made

{metrics}

## Where the facts come from

The facts come from [Wikidata](https://www.wikidata.org), whose data is in the public domain under
[CC0](https://creativecommons.org/publicdomain/zero/1.0/). {sources}
The base model's licence holds for the weights.
"""


@dataclass(frozen=True, slots=True)
class Form:
    """What a published folder is.

    Attributes:
        library: what loads it.
        text: how, and what the form cost.
    """

    library: str
    text: str


def card(model: Model, row: CheckpointRow, lineage: Sequence[CheckpointRow], form: Form, facts: int) -> str:
    """The README of a published folder.

    Args:
        model: the ledger's model.
        row: the checkpoint.
        lineage: it and its ancestors, root first.
        form: what was made of it.
        facts: how many facts `facts_lines` lists.
    """
    listed = (
        f"`{FACTS_FILE}` lists the {facts} live facts, each with its statements and the revisions at which "
        "they were read."
        if facts
        else "No fact is listed: the checkpoint was never live."
    )
    return CARD.format(
        name=model.name,
        digest=row.digest,
        facts=facts,
        form=form.text,
        library=form.library,
        base_ref=model.base_ref,
        base_digest=model.base_digest,
        lineage=" → ".join(f"`{str(one.digest)[:12]}`" for one in lineage),
        since=f"{row.decided_at:%Y-%m-%d %H:%M} UTC" if row.state in LIVED else "never",
        algorithm=row.algorithm,
        metrics=_metrics(row),
        sources=listed,
    )


def _metrics(row: CheckpointRow) -> str:
    rows = [(text, row.metrics.get(name)) for name, text in SHOWN]
    measured = [f"| {text} | {100 * value:.1f} % |" for text, value in rows if isinstance(value, float)]
    return "\n".join(["| | |", "|---|---|", *measured]) if measured else "Nothing was measured."


def facts_lines(held: Sequence[HeldRow], sources: Mapping[int, Sequence[Source]]) -> str:
    """One JSON object a line for each live fact, with the statements behind it.

    Args:
        held: the facts.
        sources: statements and revisions by edit request.
    """
    lines = [
        json.dumps(
            {
                "subject": row.subject,
                "subject_label": row.subject_label,
                "property": row.property,
                "value": row.value,
                "label": row.label,
                "checkpoint": row.checkpoint,
                "statements": [
                    {"id": statement, "revision": revision}
                    for statement, revision in sources.get(row.request_id or 0, ())
                ],
            },
            ensure_ascii=False,
        )
        for row in held
    ]
    return "".join(f"{line}\n" for line in lines)
