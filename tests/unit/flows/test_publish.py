"""Which checkpoint is published, by its name or by a moment."""

from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from flows.cli.checkpoints import checkpoint
from flows.errors import CheckpointInputError, NothingLiveError
from flows.publish import live_at
from flows.workspace import opened_model
from tests.unit.storage.steps import night


def refused(settings, *arguments):
    """How `factsync checkpoint materialize` fails."""
    return CliRunner().invoke(checkpoint, ["materialize", *map(str, arguments)], obj=settings).exception


def test_a_moment_names_the_checkpoint_that_was_live_then(nights):
    with opened_model(nights) as (ws, model):
        for number, row in enumerate(ws.ledger.lineage(model), start=1):
            assert live_at(ws, model, night(number) + timedelta(hours=1)) == row


def test_a_moment_at_which_the_base_was_live_is_refused(nights, tmp_path):
    error = refused(nights, "live", tmp_path / "out", "--as-of", "2026-01-01")
    assert isinstance(error, NothingLiveError)
    assert "2026-01-01 00:00 UTC" in str(error)


def test_so_is_one_during_a_rollback_to_the_base(nights):
    with opened_model(nights) as (ws, model), ws.writer() as lease:
        head = ws.ledger.head(model)
        ws.ledger.rollback(lease, None, reason="test", review=False)
        between = datetime.now(UTC)
        ws.ledger.rollback(lease, head.id, reason="test", review=False)
        with pytest.raises(NothingLiveError):
            live_at(ws, model, between)


def test_a_digest_takes_no_moment(nights, tmp_path):
    with opened_model(nights) as (ws, model):
        digest = ws.ledger.head(model).digest
    error = refused(nights, digest[:12], tmp_path / "out", "--as-of", "2026-01-03")
    assert isinstance(error, CheckpointInputError)
    assert error.exit_code == 2
