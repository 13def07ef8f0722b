"""The drift watch reads what nights left in the ledger and draws it."""

from __future__ import annotations

import importlib
import json

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from typer.testing import CliRunner

from flows import drift
from flows.cli.main import app
from flows.workspace import opened_model

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_two_nights_make_two_points(two_nights, tmp_path):
    settings = two_nights[0]
    with opened_model(settings) as (ws, model):
        found = drift.read(ws, model)
    assert [row["position"] for row in found.nights] == sorted(row["position"] for row in found.nights)
    assert len(found.nights) == 2
    assert all(row["perplexity"] > 1 and row["perplexity_base"] > 1 for row in found.nights)
    assert found.nights[1]["norm"] > 0
    first, second = (row["position"] for row in found.nights)
    # What night one taught is asked again on night two.
    assert {(row["cohort"], row["position"]) for row in found.cohorts} == {
        (first, first),
        (first, second),
        (second, second),
    }
    assert all(0 <= row["share"] <= 1 and row["checks"] > 0 for row in found.cohorts)
    assert {row["property"] for row in found.relations} <= {"P6", "P35", "P108", "P1308"}
    assert drift.picture(found).startswith(b"\x89PNG")

    importlib.import_module("flows.cli.evaluate")
    out = tmp_path / "drift.png"
    command = ["--home", str(settings.home), "drift", "--out", str(out)]
    assert len(json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)["nights"]) == 2
    assert "perplexity" in CliRunner().invoke(app, command).stdout
    assert out.read_bytes().startswith(b"\x89PNG")

    with get_client(sync_client=True) as client:
        shown = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["drift"])))
    assert "data:image/png" in shown[0].data


def test_nothing_yet_is_an_empty_picture():
    assert drift.picture(drift.Drift((), (), ())).startswith(b"\x89PNG")
