"""What another model, or a backfill, read for other relations was read in part. No model is needed."""

import pytest

from flows import night
from flows.dry_run import dry_run
from flows.workspace import Workspace
from kb.store import LocalStore
from tests.integration.flows.conftest import environment_of, prepared
from tests.unit.storage import steps


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Settings of a home with night one loaded, for a model that nothing here loads."""
    for name, value in environment_of(tmp_path / "home", "none").items():
        monkeypatch.setenv(name, value)
    return prepared()


def syncing(settings, *relations, model="one"):
    """The same home for other relations, or another model."""
    return settings.model_copy(update={"relations": list(relations), "model_name": model})


def one_night(settings, *, meanwhile=None):
    """Read and plan as a sync does; return what it fetched, and the edits it wishes."""
    with Workspace.open(settings) as ws, ws.feed() as feed:
        ws.ledger.ensure_model(ws.model_name, settings.model, steps.BASE)
        with ws.writer() as lease:
            pulled = night.pull(ws, lease.model, feed, night.probe(ws, feed))
            run = night.begin(ws, lease, pulled.seen)
            if meanwhile is not None:
                meanwhile()
            night.record(ws, lease, run, pulled)
            plan, _ = night.plan(ws, lease, run, pulled)
            ws.ledger.finish_run(lease, run, "nothing")
            return pulled.seen.changed, wished(plan)


def wished(plan):
    return {(one.subject, one.property, one.slot) for one in plan.edits}


def test_models_with_other_relations_do_not_hide_each_others_news(settings):
    """Each item is known at its revision after the first model's night, which read another relation of it."""
    other = syncing(settings, "P35", model="other")
    everything = wished(dry_run(other))
    one_night(syncing(settings, "P6"))
    assert wished(dry_run(other)) == everything
    assert one_night(other)[1] == everything
    assert one_night(syncing(settings, "P6"))[0], "the other night may have read what is new of these"
    assert one_night(syncing(settings, "P6"))[0] == ()


def test_models_with_the_same_relations_read_once(settings):
    one_night(syncing(settings, "P6", "P35"))
    fetched, edits = one_night(syncing(settings, "P35", model="other"))
    assert fetched == ()
    assert edits
    assert one_night(syncing(settings, "P35", model="other"))[0] == ()


def test_a_night_that_ended_after_this_models_last_may_have_read_in_part(settings):
    other = syncing(settings, "P35", model="other")
    one_night(syncing(settings, "P6"), meanwhile=lambda: one_night(other))
    assert one_night(other)[0]


def test_so_may_a_backfill(settings):
    both = syncing(settings, "P6", "P35")
    one_night(both)
    with Workspace.open(syncing(settings, "P6")) as ws, ws.writer() as lease:
        run = ws.ledger.begin_run(lease, "backfill", reference_time=steps.night(1), params={"read": ["P6"]})
        ws.ledger.finish_run(lease, run, "nothing")
    assert one_night(both)[0]
    assert one_night(both)[0] == ()


def test_a_relation_that_was_left_out_for_a_night_is_read_again_where_it_had_statements(settings):
    """What changed of it that night shows in no item's revision any more; items without it are let be."""
    both, one = syncing(settings, "P6", "P35"), syncing(settings, "P35")
    one_night(both)
    LocalStore(settings.store_dir).load_night(2)
    one_night(one)
    fetched, edits = one_night(both)
    assert {prop for _, prop, _ in edits} == {"P6"}
    with Workspace.open(settings) as ws:
        assert set(fetched) == {row.id for row in ws.ledger.tracked(["P6"])}
    assert one_night(both)[0] == ()
