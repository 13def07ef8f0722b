"""What `factsync relations check|list|preview` shows: plain rows and lines, laid out by the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kb.render import reading

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from kb.model import Label, Value
    from kb.relations import Relation


def notes(relations: Mapping[str, Relation], selected: Collection[str]) -> Iterator[str]:
    """What may surprise of the relations that a user added, though nothing is wrong with them.

    Args:
        relations: all that are described.
        selected: property ids of the setting; none selects all.
    """
    for one in relations.values():
        if one.shipped:
            continue
        if selected and one.property not in selected:
            yield f"{one.property} ({one.name}) is not synced: FACTSYNC_RELATIONS leaves it out."
        elif not one.kinds and not one.neighbours:
            yield (
                f"{one.property} ({one.name}) has no kind and no neighbours: its edits are not kept from "
                "spreading to other subjects, and no check asks whether they did."
            )


def rows(relations: Mapping[str, Relation]) -> list[dict[str, str]]:
    """One row a relation, for a table."""
    return [
        {
            "property": one.property,
            "name": one.name,
            "cardinality": one.cardinality.value,
            "datatype": one.datatype.value + (" series" if one.series else ""),
            "hold": f"{one.hold_hours} h",
            "when ended": one.ended,
            "templates": f"{len(one.edit_templates)} + {len(one.heldback_templates)}",
        }
        for one in relations.values()
    ]


def preview(
    relation: Relation, subject: Label, value: Value | None, labels: Mapping[str, Label]
) -> list[tuple[str, str]]:
    """What would be said of a subject.

    Args:
        relation: the relation.
        subject: the subject's label.
        value: the object, or None to show the prompts alone.
        labels: holds the object's label if it is an item.

    Returns:
        (purpose, sentence) pairs: ``edit`` prompts are trained on, ``held back`` ones only tested.
    """
    text = reading(value, relation, labels) if value is not None else None
    end = f" {text}" if text is not None else " …"
    trained = [("edit", prompt + end) for prompt in relation.prompts(subject.text)]
    return trained + [("held back", prompt + end) for prompt in relation.heldback_prompts(subject.text)]
