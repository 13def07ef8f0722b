"""From what the ledger owes to what the editor is asked, by the rule that the subject is the unit.

A night that touches one fact of a subject asks the editor for all live facts of that subject: they share
keys, so they are solved together and the subject's stored state is replaced.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from editor import state as states
from editor.requests import EditRequest
from flows.models import STATES_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from editor.state import SubjectState
    from storage.checkpoints import CheckpointFiles
    from storage.records.facts import HeldRow, SubjectStateRow
    from storage.records.planned import EditRequestRow

RETRACT = "retract"


@dataclass(frozen=True, slots=True)
class Assignment:
    """One call of the editor.

    Attributes:
        tonight: the facts that are owed, without retractions.
        retracted: the facts that are taken out, each with the object it said.
        companions: other live facts of the touched subjects; solved again, beside the new ones.
        live: states of the subjects that nobody touches.
        retired: states of the touched subjects, as they stood.
        watched: live facts of the subjects that nobody touches; what has slipped of them is refined.
    """

    tonight: tuple[EditRequest, ...]
    retracted: tuple[EditRequest, ...]
    companions: tuple[EditRequest, ...]
    live: tuple[SubjectState, ...]
    retired: tuple[SubjectState, ...]
    watched: tuple[EditRequest, ...]


def fact_id(subject: str, property_id: str, slot: str) -> str:
    """A fact's scope as one text: what the editor calls it."""
    return f"{subject}/{property_id}/{slot}"


def scope(fact: str) -> tuple[str, str, str]:
    """The (subject, property, slot) of a fact id."""
    subject, property_id, slot = fact.split("/", 2)
    return subject, property_id, slot


def assign(
    owed: Sequence[EditRequestRow], held: Sequence[HeldRow], live_states: Mapping[str, SubjectState]
) -> Assignment:
    """Put a batch of owed edits together with what the model holds of the same subjects.

    Args:
        owed: claimed requests of one batch, oldest first.
        held: the model's live facts; those of other subjects are ignored.
        live_states: the stored state of every live subject.
    """
    touched = {row.subject for row in owed}
    ops = {fact_id(row.subject, row.property, row.slot): row.op for row in owed}
    of_touched = [from_held(row) for row in held if row.subject in touched]
    return Assignment(
        tuple(from_owed(row) for row in owed if row.op != RETRACT),
        # In the words in which it was taught, which need not be today's.
        tuple(fact for fact in of_touched if ops.get(fact.fact_id) == RETRACT),
        tuple(fact for fact in of_touched if fact.fact_id not in ops),
        tuple(state for subject, state in live_states.items() if subject not in touched),
        tuple(state for subject, state in live_states.items() if subject in touched),
        tuple(from_held(row) for row in held if row.subject in live_states and row.subject not in touched),
    )


def from_owed(row: EditRequestRow) -> EditRequest:
    """An owed edit, as the editor wants it."""
    return EditRequest(
        fact_id=fact_id(row.subject, row.property, row.slot),
        subject_id=row.subject,
        subject=row.subject_label,
        prompts=row.prompts,
        target=row.target,
        heldback=row.heldback,
        old_target=row.old_label,
    )


def from_held(row: HeldRow) -> EditRequest:
    """A live fact, as the editor wants it."""
    return EditRequest(
        fact_id=fact_id(row.subject, row.property, row.slot),
        subject_id=row.subject,
        subject=row.subject_label,
        prompts=row.prompts,
        target=row.label,
        heldback=row.heldback,
    )


def with_rivals(requests: Iterable[EditRequest], answers: Mapping[str, str]) -> tuple[EditRequest, ...]:
    """Give each fact something to beat: its superseded object, else what the base model says in its place.

    Another item of the same name is nothing to beat.

    Args:
        requests: facts.
        answers: the base model's completion of each fact's first prompt, by fact id.
    """
    return tuple(
        request
        if request.old_target and request.old_target.casefold() != request.target.casefold()
        else replace(request, old_target=rival(answers.get(request.fact_id, ""), request.target))
        for request in requests
    )


def rival(answer: str, target: str) -> str | None:
    """The base model's own object: its completion up to the first stop, no longer than the target in words.

    None where the model says the target already, or nothing.
    """
    clause = answer
    for mark in (".", ",", ";", ":", "?", "!", "\n", '"', "("):
        clause = clause.split(mark)[0]
    words = clause.split()[: len(target.split())]
    text = " ".join(words)
    return text if text and text.casefold() != target.casefold() else None


def read_states(files: CheckpointFiles, rows: Iterable[SubjectStateRow]) -> dict[str, SubjectState]:
    """Read each live subject's stored state from the checkpoint that holds it, each file once."""
    wanted: dict[str, set[str]] = {}
    for row in rows:
        wanted.setdefault(row.checkpoint, set()).add(row.subject)
    found: dict[str, SubjectState] = {}
    for digest, subjects in wanted.items():
        stored = states.from_bytes(files.open(digest).files[STATES_FILE].read_bytes())
        found.update({state.subject_id: state for state in stored if state.subject_id in subjects})
    return dict(sorted(found.items()))
