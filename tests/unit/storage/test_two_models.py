"""Two models in one ledger share what was read, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from storage.checkpoints import CheckpointFiles
from storage.errors import CheckpointStateError
from storage.ledger import Ledger
from tests.unit.storage import steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ONE, OTHER = "one", "other"
ROWS = {
    "holding": "SELECT f.subject, f.property, r.value, h.held_to IS NULL FROM holding h"
    " JOIN model m ON m.id = h.model_id JOIN fact f ON f.id = h.fact_id"
    " JOIN edit e ON e.id = h.edit_id JOIN edit_request r ON r.id = e.request_id WHERE m.name = :model",
}


def state(ledger: Ledger, name: str) -> dict[str, Any]:
    """What the ledger says of a model, without keys."""
    model = ledger.model(name)
    status = ledger.status(model)
    head = status.head
    rows = {what: ledger.query(sql, {"model": name}).rows for what, sql in ROWS.items()}
    return {
        "head": head and (head.digest, head.state, head.live_facts),
        "held": steps.held(ledger, name),
        "owed": [(row.subject, row.property, row.value, row.attempts) for row in ledger.owed(model)],
        "counts": (status.live_facts, status.to_review),
        **{what: sorted(map(tuple, found)) for what, found in rows.items()},
    }


class Twins:
    """Each step is taken in the ledger of both models and in the model's own; all must agree after it."""

    def __init__(self, both: Ledger, folder: Path) -> None:
        self.world = steps.World()
        self.both = both
        self.own = {name: Ledger.open(str(folder / f"{name}.db")) for name in (ONE, OTHER)}
        self.files = {
            ledger: CheckpointFiles(folder / f"checkpoints-{number}")
            for number, ledger in enumerate((both, *self.own.values()))
        }
        for name, own in self.own.items():
            for ledger in (both, own):
                ledger.ensure_model(name, "local", steps.BASE)

    def agree(self) -> None:
        for name, own in self.own.items():
            assert state(self.both, name) == state(own, name), name

    def night(self, name: str, number: int, verdict: str = "promote") -> None:
        """A sync of one model; what it reads is news to the other, too."""
        for ledger in (self.both, self.own[name]):
            steps.sync(ledger, self.files[ledger], self.world, number, verdict=verdict, model=name)
        bystander = OTHER if name == ONE else ONE
        own = self.own[bystander]
        with own.writer(bystander, holder="test") as lease:
            run = own.begin_run(lease, "sync", reference_time=steps.night(number))
            steps.ingest(own, lease, run, self.world, number)
            own.finish_run(lease, run, "nothing")
        self.agree()

    def reject(self, name: str, *, requeue: bool) -> None:
        """A person turns the candidate down that a night left."""
        for ledger in (self.both, self.own[name]):
            waiting = ledger.status(ledger.model(name)).open_checkpoint
            assert waiting is not None
            with ledger.writer(name, holder="a person") as lease:
                ledger.reject(lease, waiting.id, reason="looks odd", requeue=requeue)
        self.agree()

    def rollback(self, name: str, pick: Callable[[list[int]], int | None], *, review: bool) -> None:
        """A person moves the head to a checkpoint that stood once (oldest first), or to the base."""
        for ledger in (self.both, self.own[name]):
            model = ledger.model(name)
            stood = [row.id for row in ledger.checkpoints(model) if row.live_facts is not None]
            with ledger.writer(name, holder="a person") as lease:
                ledger.rollback(lease, pick(stood), reason="looks wrong", review=review)
        self.agree()


@pytest.fixture
def twins(ledger: Ledger, tmp_path: Path) -> Iterator[Twins]:
    made = Twins(ledger, tmp_path)
    yield made
    for own in made.own.values():
        own.close()


def test_two_models_of_a_ledger_live_as_in_ledgers_of_their_own(twins: Twins) -> None:
    """Whatever the other does between their steps: promote, wait, fail, wish anew, go back and forth."""
    world = twins.world
    for number in range(1, 5):
        world.set(f"Q{number}", "P6", f"Q{100 + number}")
    twins.night(ONE, 1)
    twins.night(OTHER, 1)
    world.set("Q1", "P6", "Q201")
    world.set("Q2", "P6", None)
    world.set("Q7", "P6", "Q207")
    twins.night(ONE, 2)
    twins.night(OTHER, 2, "leave")
    # The other carries these facts still while one wishes them anew, fails, and owes them again.
    world.set("Q1", "P6", "Q301")
    twins.night(ONE, 3, "leave")
    twins.reject(ONE, requeue=False)
    world.set("Q7", "P6", "Q407")
    twins.night(ONE, 4, "reject")
    twins.reject(OTHER, requeue=True)
    # Now both owe them, and one is done with them first.
    world.set("Q1", "P6", "Q501")
    world.set("Q8", "P6", "Q508")
    twins.night(ONE, 5)
    # What one undoes for good the other has not learnt yet.
    twins.rollback(ONE, lambda stood: stood[-2], review=False)
    twins.night(OTHER, 5)
    twins.rollback(ONE, lambda stood: stood[-1], review=True)
    twins.rollback(OTHER, lambda _: None, review=True)
    for name in (ONE, OTHER):
        twins.night(name, 6)
        assert steps.held(twins.both, name) == world.values


def test_a_model_cannot_claim_what_another_owes(twins: Twins) -> None:
    twins.world.set("Q1", "P6", "Q101")
    twins.night(OTHER, 1, "reject")
    both = twins.both
    (owed,) = both.owed(both.model(OTHER))
    with both.writer(ONE, holder="test") as lease:
        run = both.begin_run(lease, "sync", reference_time=steps.night(1))
        with pytest.raises(CheckpointStateError, match="not pending"):
            both.begin_checkpoint(lease, run, [owed.id or 0], algorithm="memit", settings={})
    twins.agree()


def test_what_another_model_read_since_a_look_stays_marked(ledger: Ledger, files: CheckpointFiles) -> None:
    """Also where the other's marks are as many as one has looked at."""
    one, world = ledger.ensure_model(ONE, "local", steps.BASE), steps.World()
    world.set("Q1", "P6", "Q101")
    steps.sync(ledger, files, world, 1, model=OTHER)
    (looked_at,) = steps.to_review(ledger, one)
    world.set("Q1", "P6", "Q201")
    with ledger.writer(OTHER, holder="test") as lease:
        run = ledger.begin_run(lease, "sync", reference_time=steps.night(2))
        steps.ingest(ledger, lease, run, world, 2)
    assert [group.marks for group in steps.to_review(ledger, ledger.model(OTHER))] == [looked_at.marks]
    with ledger.writer(ONE, holder="test") as lease:
        run = ledger.begin_run(lease, "sync", reference_time=steps.night(2))
        reviewed = {("Q1", "P6"): looked_at.marks}
        ledger.record_plan(lease, run, [], [], reviewed=reviewed, flip_memory=steps.FLIP_MEMORY)
    assert ledger.status(one).to_review == 1
