"""The head moves only to a checkpoint whose files are whole, those of what it stands on among them."""

import shutil

import pytest

from flows import heads
from flows.decide import promote
from flows.errors import CandidateWaitsError
from flows.workspace import opened_model
from storage.errors import MissingCheckpointError
from tests.unit.storage import steps


def test_nothing_is_made_live_that_stands_on_a_missing_checkpoint(nights):
    with opened_model(nights) as (ws, model), ws.writer() as lease:
        first, second, third = ws.ledger.lineage(model)
        heads.go_to(ws, lease, first.digest, reason="test")
        shutil.rmtree(ws.files.path(second.digest))
        with pytest.raises(MissingCheckpointError, match=second.digest[:12]):
            heads.go_to(ws, lease, third.digest, reason="test")
        assert ws.ledger.head(model).digest == first.digest
        heads.go_to(ws, lease, heads.BASE, reason="test")
        assert ws.ledger.head(model) is None


def test_nothing_is_while_a_candidate_waits(nights):
    world = steps.World()
    world.set("Q2", "P6", "Q20")
    with opened_model(nights) as (ws, model):
        steps.sync(ws.ledger, ws.files, world, 4, verdict="leave")
        waits = ws.ledger.status(model).open_checkpoint
        with (
            ws.writer() as lease,
            pytest.raises(CandidateWaitsError, match=f"{waits.digest[:12]} waits for a person"),
        ):
            heads.go_to(ws, lease, ws.ledger.lineage(model)[0].digest, reason="test")


def test_nor_is_a_candidate_that_does(nights):
    world = steps.World()
    world.set("Q2", "P6", "Q20")
    with opened_model(nights) as (ws, model):
        steps.sync(ws.ledger, ws.files, world, 4, verdict="leave")
        live = ws.ledger.head(model).digest
        shutil.rmtree(ws.files.path(live))
    with pytest.raises(MissingCheckpointError, match=live[:12]):
        promote.fn()
    with opened_model(nights) as (ws, model):
        assert ws.ledger.head(model).digest == live
