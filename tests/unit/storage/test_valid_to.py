"""The end of a fact in `fact_history`: what the statements behind it say of its own value now."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from storage.records.planned import ChangeRow, EditRequestRow
from tests.unit.storage import steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.checkpoints import CheckpointFiles
    from storage.ledger import Ledger
    from storage.records.pulled import StatementRow
    from storage.records.runs import Lease

_ASKED = "SELECT valid_to FROM fact_history"


def _pull(ledger: Ledger, lease: Lease, number: int, statements: Sequence[StatementRow]) -> int:
    run = ledger.begin_run(lease, "sync", reference_time=steps.night(number))
    ledger.ingest(
        lease,
        run,
        source=steps.SOURCE,
        cursor_to=None,
        entities=[],
        statements=statements,
        pulled_groups=[("Q1", "P6")],
    )
    return run


def _ends(ledger: Ledger, files: CheckpointFiles, ends: Sequence[tuple[str, str | None]], op: str) -> object:
    """Teach a fact that rests on statements of Q10; then each says something else: a value and its end."""
    stood = [steps.statement("Q1", "P6", "Q10", 1, guid=f"Q1$A{number}") for number in range(len(ends))]
    behind = tuple((one.id, one.revision) for one in stood)
    ledger.ensure_model(steps.MODEL, "local", steps.BASE)
    with ledger.writer(steps.MODEL, holder="test") as lease:
        run = _pull(ledger, lease, 1, stood)
        taught = EditRequestRow(
            "Q1", "P6", "", op, "One", "Ten", ("{} is led by",), value="Q10", sources=behind
        )
        ledger.record_plan(
            lease, run, [ChangeRow(op, "Q1", "P6")], [taught], reviewed={}, flip_memory=steps.FLIP_MEMORY
        )
        checkpoint = steps.make_candidate(ledger, lease, run, files)
        assert checkpoint is not None
        ledger.promote(lease, checkpoint, reason="all gates passed")
        ledger.finish_run(lease, run, "succeeded")
        said = [
            replace(one, value=value, valid_to=end, content_hash=f"{value} {end}", revision=2)
            for one, (value, end) in zip(stood, ends, strict=True)
        ]
        ledger.finish_run(lease, _pull(ledger, lease, 2, said), "nothing")
    ((valid_to,),) = ledger.query(_ASKED).rows
    return valid_to


@pytest.mark.parametrize(
    ("ends", "valid_to"),
    [
        ([("Q10", "2029")], "2029"),
        ([("Q10", "2029"), ("Q10", None)], None),
        ([("Q10", "2029"), ("Q10", "2026-05-01")], "2029"),
        ([("Q11", "2029")], None),
        ([("Q11", "2029"), ("Q10", "2026")], "2026"),
        ([("Q10", "novalue")], None),
        ([("Q10", "somevalue")], "somevalue"),
        ([("Q10", "-0100"), ("Q10", "-0043")], "-0043"),
        ([("Q10", "-0100"), ("Q10", "0014"), ("Q10", "-0043")], "0014"),
    ],
)
def test_a_fact_ends_when_what_still_gives_its_value_says_so(
    ledger: Ledger, files: CheckpointFiles, ends: list[tuple[str, str | None]], valid_to: str | None
) -> None:
    assert _ends(ledger, files, ends, "insert") == valid_to


def test_that_nobody_follows_does_not_end_when_the_former_value_did(
    ledger: Ledger, files: CheckpointFiles
) -> None:
    assert _ends(ledger, files, [("Q10", "2025")], "suppress") is None
