"""What was read for other relations was read in part, and is read again. No model is needed."""

import pytest

from flows import backfill, night
from flows.dry_run import dry_run
from flows.workspace import Workspace
from tests.integration.flows.conftest import environment_of, prepared
from tests.unit.storage import steps


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Settings of a home with night one loaded, for a model that nothing here loads."""
    for name, value in environment_of(tmp_path / "home", "none").items():
        monkeypatch.setenv(name, value)
    return prepared()


def syncing(settings, *relations, model=steps.MODEL):
    """The same home with other relations, or for another model."""
    return settings.model_copy(update={"relations": list(relations), "model_name": model})


def one_night(settings, *, dies=False):
    """Read and plan as a sync does; return what it fetched, and the plan."""
    with Workspace.open(settings) as ws, ws.feed() as feed:
        ws.ledger.ensure_model(ws.model_name, settings.model, steps.BASE)
        with ws.writer() as lease:
            pulled = night.pull(ws, lease.model, feed, night.probe(ws, feed))
            run = night.begin(ws, lease, pulled.seen)
            if dies:
                return pulled.seen.changed, None
            night.record(ws, lease, run, pulled)
            return pulled.seen.changed, night.plan(ws, lease, run, pulled)[0]


def inserted(plan):
    return {(one.subject, one.property, one.slot) for one in plan.edits}


def test_a_relation_that_is_new_to_a_home_is_read_in_full(settings, tmp_path):
    everything = inserted(dry_run(syncing(settings, "P6", "P35")))
    _, first = one_night(syncing(settings, "P6"))
    assert inserted(dry_run(syncing(settings, "P6", "P35"))) == everything
    one_night(syncing(settings, "P6", "P35"), dies=True)
    fetched, second = one_night(syncing(settings, "P6", "P35"))
    assert fetched
    assert inserted(first) | inserted(second) == everything
    assert one_night(syncing(settings, "P6", "P35"))[0] == ()
    assert one_night(syncing(settings, "P6"))[0] == ()


def test_models_with_other_relations_do_not_hide_each_others_news(settings):
    """Each item is known at its revision after the first model's night, which read another relation of it."""
    everything = inserted(dry_run(syncing(settings, "P35")))
    one_night(syncing(settings, "P6", model="one"))
    assert inserted(one_night(syncing(settings, "P35", model="other"))[1]) == everything


def test_a_backfill_of_other_relations_does_not_hide_news_either(settings):
    one_night(syncing(settings, "P6", "P35"))
    with Workspace.open(syncing(settings, "P6", "P108")) as ws, ws.writer() as lease:
        ws.ledger.begin_run(lease, "backfill", reference_time=steps.night(1), params=backfill.read_by(ws))
        assert ws.ledger.read_relations() == {"P6"}
    assert one_night(syncing(settings, "P6"))[0] == ()
    assert one_night(syncing(settings, "P6", "P35"))[0]
