"""The facts that a night wrote are records of an evaluation."""

from __future__ import annotations

import pytest

from editor.errors import DataFormatError
from flows import evaluate
from flows.asked import Asked
from flows.errors import UnknownModelNameError
from flows.ledger_cases import from_ledger
from flows.models import load_base
from flows.workspace import Workspace, opened_model

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_live_facts_are_evaluated(one_night, tmp_path):
    settings, _ = one_night
    with opened_model(settings) as (ws, model):
        live = {f"{row.subject}/{row.property}/{row.slot}" for row in ws.ledger.live_facts(model)}
    lm = load_base(settings)
    data = from_ledger(settings, lm)
    assert {case.case_id for case in data.cases} == live
    assert data.digest == from_ledger(settings, lm).digest
    asked = Asked(data="ledger", methods=("retrieval",), edits=(3,), texts=1)
    found = evaluate.evaluate(settings, asked, tmp_path / "out")
    base, one = found.results
    assert set(one["by_relation"]) <= {"P6", "P35", "P108", "P1308"}
    assert base["metrics"]["paraphrase"] is not None
    assert one["metrics"]["efficacy"] is not None


def test_a_home_without_facts_is_named(settings):
    lm = load_base(settings)
    with pytest.raises(UnknownModelNameError, match="No sync has run"):
        from_ledger(settings, lm)
    with Workspace.open(settings) as ws:
        ws.ledger.ensure_model(ws.model_name, settings.model, lm.digest)
    with pytest.raises(DataFormatError, match="no fact yet"):
        from_ledger(settings, lm)
