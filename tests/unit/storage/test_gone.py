"""Values that lately went: one that comes back is a flip, whether or not it ever waited."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from storage.records.planned import ChangeRow
from tests.unit.storage import steps

if TYPE_CHECKING:
    from storage.checkpoints import CheckpointFiles
    from storage.ledger import Ledger
    from storage.records.runs import Lease

_PAIR = ("Q1", "P6")


def _gone(ledger: Ledger, since: int = 0) -> dict[str, frozenset[str]]:
    model = ledger.model(steps.MODEL)
    (group,) = ledger.groups(model, [_PAIR], gone_since=steps.night(since))
    return dict(group.gone)


def _plan(ledger: Ledger, lease: Lease, number: int, change: ChangeRow) -> None:
    run = ledger.begin_run(lease, "sync", reference_time=steps.night(number))
    ledger.record_plan(lease, run, [change], [], reviewed={_PAIR: 0}, flip_memory=steps.FLIP_MEMORY)
    ledger.finish_run(lease, run, "nothing")


@pytest.mark.parametrize(
    ("taught", "gone"),
    [
        (["Q10", "Q11"], {"Q10"}),
        (["Q10", "Q11", "Q10"], {"Q10", "Q11"}),
        (["Q10", None, "Q11"], {"Q10", ""}),
    ],
)
def test_what_was_taught_otherwise_has_gone(
    ledger: Ledger, files: CheckpointFiles, taught: list[str | None], gone: set[str]
) -> None:
    world = steps.World()
    for number, value in enumerate(taught, start=1):
        world.set(*_PAIR, value)
        steps.sync(ledger, files, world, number)
    assert _gone(ledger) == {"": gone}
    assert not any(_gone(ledger, since=len(taught) + 1).values())
    (group,) = ledger.groups(ledger.model(steps.MODEL), [_PAIR])
    assert group.gone == {}, "nobody asked"


def test_what_was_replaced_without_a_wait_is_remembered_when_it_comes_back(
    ledger: Ledger, files: CheckpointFiles
) -> None:
    world = steps.World()
    for number, value in enumerate(("Q10", "Q11"), start=1):
        world.set(*_PAIR, value)
        steps.sync(ledger, files, world, number)
    with ledger.writer(steps.MODEL, holder="test") as lease:
        _plan(ledger, lease, 3, ChangeRow("quarantine", *_PAIR, new_value="Q10", old_value="Q11"))
    (pending,) = ledger.pending(ledger.model(steps.MODEL))
    assert pending.previous_values == ("Q10",)


def test_what_was_released_and_is_still_owed_has_not_gone(ledger: Ledger, files: CheckpointFiles) -> None:
    """Its checkpoint was rejected: tonight it is wished again, and that is no flip."""
    world = steps.World()
    world.set(*_PAIR, "Q10")
    steps.sync(ledger, files, world, 1)
    with ledger.writer(steps.MODEL, holder="test") as lease:
        _plan(ledger, lease, 2, ChangeRow("quarantine", *_PAIR, new_value="Q11", old_value="Q10"))
    world.set(*_PAIR, "Q11")
    steps.sync(ledger, files, world, 3, verdict="reject")
    assert ledger.query("SELECT resolution FROM quarantine").rows == (("released",),)
    assert "Q11" not in _gone(ledger)[""]


def test_what_a_rollback_undid_has_not_gone(ledger: Ledger, files: CheckpointFiles) -> None:
    world = steps.World()
    world.set(*_PAIR, "Q10")
    first = steps.sync(ledger, files, world, 1)["checkpoint"]
    world.set(*_PAIR, "Q11")
    steps.sync(ledger, files, world, 2)
    with ledger.writer(steps.MODEL, holder="test") as lease:
        ledger.rollback(lease, first, reason="a bad night", review=True)
    assert "Q11" not in _gone(ledger).get("", ())


def test_what_waited_and_was_withdrawn_has_gone(ledger: Ledger, files: CheckpointFiles) -> None:
    world = steps.World()
    world.set(*_PAIR, "Q10")
    steps.sync(ledger, files, world, 1)
    with ledger.writer(steps.MODEL, holder="test") as lease:
        _plan(ledger, lease, 2, ChangeRow("quarantine", *_PAIR, new_value="Q11", old_value="Q10"))
        _plan(ledger, lease, 3, ChangeRow("unchanged", *_PAIR))
    assert "Q11" in _gone(ledger)[""]
    assert not _gone(ledger, since=3)
