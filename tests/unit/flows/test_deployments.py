"""prefect.yaml, and the forms it makes."""

import importlib
import json
import os
from pathlib import Path

import pytest
import yaml
from prefect import Flow

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden" / "forms.json"
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def flow_of(entrypoint):
    module, _, name = entrypoint.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda one: one["name"])
def test_every_entrypoint_is_a_flow(deployment):
    assert isinstance(flow_of(deployment["entrypoint"]), Flow)
    assert deployment["work_pool"]["name"] == "factsync"


def test_a_paused_schedule_stays_paused():
    schedules = [one for deployment in DEPLOYMENTS for one in deployment.get("schedules", [])]
    assert schedules
    for one in schedules:
        assert one["slug"]
        assert "active" not in one
        assert one["timezone"]


def form(flow):
    schema = flow.parameters.model_dump()
    fields = {}
    for name, field in schema["properties"].items():
        shown = {key: value for key, value in field.items() if key not in {"position", "title"}}
        if "enum" in shown.get("items", {}):
            shown["items"] = {**shown["items"], "enum": shown["items"]["enum"][:3]}
        fields[name] = shown
    return {"fields": fields, "required": schema["required"]}


def test_the_forms_are_as_recorded():
    """The forms are an interface: people and scripts fill them. `FACTSYNC_GOLDEN=write` records them anew."""
    found = {one["name"]: form(flow_of(one["entrypoint"])) for one in DEPLOYMENTS}
    text = json.dumps(found, indent=2, sort_keys=True) + "\n"
    if os.environ.get("FACTSYNC_GOLDEN") == "write":
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text)
    assert json.loads(text) == json.loads(GOLDEN.read_text())


def test_every_field_is_described_and_has_a_default():
    for deployment in DEPLOYMENTS:
        described = form(flow_of(deployment["entrypoint"]))
        assert not described["required"], deployment["name"]
        for name, field in described["fields"].items():
            assert field.get("description"), f"{deployment['name']}: {name}"
