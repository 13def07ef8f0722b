"""What becomes of one slot tonight, made for tests: what the model holds of it, what waits, what is said."""

from __future__ import annotations

from datetime import timedelta

from kb.diff import Known, changes
from kb.model import Label, Value
from kb.semantics import verdict
from kb.trust import Held, Pending, Trust
from tests.unit.kb.made import AT, relation

ONE = relation("one_open")
OLD = AT - timedelta(days=400)
HOUR = timedelta(hours=1)
LABELS = {
    entity: Label(entity, text, "en")
    for entity, text in {"Q100": "Ruritania", "Q1": "Ada", "Q2": "Bea", "Q3": "Cleo"}.items()
}
TRUST = Trust()


def holds(item="Q1", slot="", label="Ada", subject_label="Ruritania"):
    return Held("Q100", "P6", slot, Value.item(item), label, subject_label)


def waits(item="Q1", hours=72.0, sightings=1, **more):
    value = Value.item(item) if item else None
    return Pending("Q100", "P6", more.pop("slot", ""), value, AT - hours * HOUR, sightings, **more)


def diff(*statements, held=(), pending=(), labels=None, modified_at=OLD, rel=ONE, trust=TRUST, at=AT, **more):
    decided = verdict(statements, rel, at, subject="Q100")
    known = Known(held=held, pending=pending, labels=labels or LABELS, modified_at=modified_at, **more)
    return changes(decided, known, at, rel, trust)


def only(*args, **kwargs):
    (change,) = diff(*args, **kwargs)
    return change
