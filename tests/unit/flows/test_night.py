"""What a night hands to the ledger."""

from datetime import timedelta
from types import SimpleNamespace

import pytest

from flows import night, translate
from flows.settings import Settings
from flows.workspace import Workspace
from kb.model import Rank, Statement, Value
from storage.records.pulled import EntityRow
from tests.unit.storage import steps


def says(value, revision):
    """A row that a pull brings."""
    one = Statement("Q1$1", "Q1", "P6", Value.item(value), Rank.NORMAL, revision=revision)
    return translate.statement_row(one)


@pytest.mark.parametrize(("memory_hours", "remembered"), [(72, ("Q10",)), (24, ())])
def test_a_value_that_went_is_remembered_as_long_as_the_settings_say(
    tmp_path, monkeypatch, memory_hours, remembered
):
    monkeypatch.setenv("FACTSYNC_TRUST_FLIP_MEMORY_HOURS", str(memory_hours))
    with Workspace.open(Settings.read(tmp_path)) as ws:
        ws.ledger.ensure_model(ws.model_name, "local", steps.BASE)
        with ws.writer() as lease:
            for number, value in enumerate(["Q10", None, "Q10"], start=1):
                at = steps.START + timedelta(days=number)
                run = ws.ledger.begin_run(lease, "sync", reference_time=at)
                ws.ledger.ingest(
                    lease,
                    run,
                    source=ws.source,
                    cursor_to=None,
                    entities=[
                        EntityRow("Q1", "Anywhere", "en", revision=number, modified_at=at),
                        EntityRow("Q10", "Ada Example", "en"),
                    ],
                    statements=[says(value, number)] if value else [],
                    pulled_groups=[("Q1", "P6")],
                )
                night.plan(ws, lease, run, SimpleNamespace(seen=SimpleNamespace(at=at), labels={}))
                ws.ledger.finish_run(lease, run, "nothing")
            (pending,) = ws.ledger.pending(lease.model)
    assert pending.previous_values == remembered
