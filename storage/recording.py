"""A plan on its way into the ledger: what the modules that record it share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from sqlalchemy.engine import Connection

    from storage.scopes import Scope


EDITING = ("insert", "replace", "retract", "suppress", "vacate")
"""Kinds of change after which the model should hold something else than before."""

WAITING = ("conflict", "quarantine")
"""Kinds of change that are held back."""


@dataclass(slots=True)
class Recording:
    """One recording in progress.

    Attributes:
        connection: Its transaction.
        model_id: The model.
        run: The run that planned.
        now: The time.
        reference_time: The run's reference time: what makes a pull.
        flip_memory: How long a value that waited and went is remembered.
        facts: Keys of the facts it speaks of.
        counts: What it did so far, for the report.
    """

    connection: Connection
    model_id: int
    run: int
    now: datetime
    reference_time: datetime
    flip_memory: timedelta
    facts: dict[Scope, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
