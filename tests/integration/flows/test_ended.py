"""Facts that end: suppressed, retracted or kept, as the relation says; and what the model says then."""

import shutil

import pytest

from flows.rebuild import rebuild
from flows.settings import Settings
from flows.sync import sync
from flows.workspace import opened_model
from kb.store import LocalStore
from tests.integration.flows.conftest import environment_of, prepared

pytestmark = pytest.mark.usefixtures("prefect_server")

GABON, PROSECUTOR = "Q1000", "Q30521859"
OWN = """
[P35]
ended = "vacant"

[P1308]
ended = "former"
former_text = "nobody since {object}"
"""


@pytest.fixture(scope="module")
def home(tiny_model_folder, prefect_server, tmp_path_factory):
    """A home with relations of its own after two nights; returns it, the second and its environment."""
    folder = tmp_path_factory.mktemp("ended")
    (folder / "own.toml").write_text(OWN)
    values = environment_of(folder / "home", tiny_model_folder)
    values["FACTSYNC_RELATIONS_FILE"] = str(folder / "own.toml")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        settings = prepared()
        sync()
        LocalStore(settings.store_dir).load_night(2)
        return folder / "home", sync(), values


@pytest.fixture
def ended(home, tmp_path, monkeypatch):
    """Settings of a copy of that home, and the second night."""
    folder, night, values = home
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FACTSYNC_HOME", str(shutil.copytree(folder, tmp_path / "home")))
    return Settings.read(), night


def rows(ws, sql):
    found = ws.ledger.query(sql)
    return found.dicts


def test_an_ended_value_is_written_over_with_what_is_true(ended):
    settings, night = ended
    kinds = {(one.subject, one.property): one.kind.value for one in night.plan.changes}
    assert kinds[GABON, "P35"] == kinds[PROSECUTOR, "P1308"] == "suppress"
    with opened_model(settings) as (ws, model):
        held = {(row.subject, row.property): row for row in ws.ledger.live_facts(model)}
        gabon, prosecutor = held[GABON, "P35"], held[PROSECUTOR, "P1308"]
        assert (gabon.op, gabon.value_kind, gabon.label) == ("suppress", "novalue", "nobody at present")
        assert prosecutor.label == "nobody since Yoon Suk-yeol"
        found = rows(ws, f"SELECT * FROM edit_history WHERE edit_id = {gabon.edit_id}")[0]
        assert found["old_target"] == "Ali Bongo Ondimba"
        assert 0 < found["p_old_after"] < 1
        assert found["rank_old_before"] >= 1
        assert found["rank_old_after"] >= 1
        # Its sources are the statements that ended.
        sources = rows(ws, f"SELECT * FROM provenance WHERE edit_id = {gabon.edit_id}")
        assert [one["statement_value"] for one in sources] == [found["old_value"]]
    # The next night finds nothing to do, and a rebuild holds it like any other fact.
    again = sync()
    assert not again.plan.edits
    assert rebuild().ending.name == "Promoted"


def test_a_retraction_is_measured_and_says_what_the_base_believes(ended):
    settings, night = ended
    gone = [one for one in night.plan.changes if one.kind.value == "retract"]
    assert gone
    assert night.candidate.metrics.retracted is not None
    with opened_model(settings) as (ws, _):
        found = rows(ws, "SELECT * FROM edit_history WHERE operation = 'retract'")
        assert len(found) == len(gone)
        for one in found:
            # A random model has no beliefs to go back to; that all is measured is what counts here.
            assert 0 < one["p_old_before"] < 1
            assert 0 < one["p_old_after"] < 1
            assert one["rank_old_before"] >= 1
            assert one["rank_old_after"] >= 1
            assert one["prompt"]
            assert one["completion"] is not None
        checks = rows(ws, "SELECT * FROM fact_recall WHERE probe = 'retraction'")
        assert {one["subject"] for one in checks} == {one.subject for one in gone}
        firsts = [one for one in checks if one["number"] == 0]
        beliefs = night.candidate.exam.beliefs
        assert all(one["expected"] in beliefs.values() for one in firsts)
        assert all(one["rank_old"] >= 1 and one["p_old"] is not None for one in checks)
        shares = rows(ws, "SELECT * FROM recall_by_relation WHERE probe = 'retraction'")
        assert sum(one["checks"] for one in shares) == len(checks)


def test_a_replacement_keeps_the_rank_of_the_old_object(ended):
    settings, _ = ended
    with opened_model(settings) as (ws, _):
        found = rows(ws, "SELECT * FROM edit_history WHERE operation = 'replace'")
        assert found
        for one in found:
            assert one["rank_old_before"] >= 1 <= one["rank_old_after"]
            assert 0 < one["p_old_before"] < 1 > one["p_old_after"] > 0
        live = rows(ws, "SELECT * FROM live_facts WHERE operation = 'replace'")
        assert all(one["rank_old"] is not None for one in live)
