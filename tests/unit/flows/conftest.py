"""A home whose ledger has seen nights, without a model: for what only moves and reads them."""

import pytest

from flows.settings import Settings
from flows.workspace import opened_model
from storage.checkpoints import CheckpointFiles
from storage.ledger import Ledger
from tests.unit.storage import steps


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Settings of an empty home, for the model of `steps`."""
    monkeypatch.setenv("FACTSYNC_HOME", str(tmp_path))
    monkeypatch.setenv("FACTSYNC_MODEL_NAME", steps.MODEL)
    return Settings.read()


@pytest.fixture
def nights(home):
    """Settings of a home after three nights by the clock, in which Q1 changed each time."""
    clock = {}
    world = steps.World()
    files = CheckpointFiles(home.checkpoints_dir)
    with Ledger.open(home.resolved_ledger_url, clock=lambda: clock["now"]) as ledger:
        for number in (1, 2, 3):
            clock["now"] = steps.night(number)
            world.set("Q1", "P6", f"Q1{number}")
            steps.sync(ledger, files, world, number)
    return home


@pytest.fixture
def waiting(nights):
    """Settings of a home in which a candidate waits that carries one edit, of Q2 and P6."""
    world = steps.World()
    world.set("Q2", "P6", "Q20")
    with opened_model(nights) as (ws, _):
        steps.sync(ws.ledger, ws.files, world, 4, verdict="leave")
    return nights
