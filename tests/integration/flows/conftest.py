"""A home with the sample's first night, a tiny model, and gates that let it through."""

import json

import pytest

RELATIONS = "P6,P35,P108,P1308"
"""Enough for every kind of change; the whole sample is what `make demo` runs."""

QUICK = {"layers": [1, 2], "moment_weight": 1.0, "steps": 3, "refine_steps": 1}

GATES = {"EFFICACY": 0, "EXACT": 0, "HELDBACK": 0, "RETENTION": 0, "NEIGHBOURS": 0, "PERPLEXITY": 1e9}


@pytest.fixture(scope="session")
def prefect_server():
    """Prefect's own test server and database, for the whole session."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


def environment_of(home, model):
    """Return the environment of a home of its own."""
    return {
        "FACTSYNC_HOME": str(home),
        "FACTSYNC_MODEL": str(model),
        "FACTSYNC_RELATIONS": RELATIONS,
        "FACTSYNC_MOMENT_TOKENS": "1000",
        "FACTSYNC_RETENTION_SAMPLE": "10",
        **{f"FACTSYNC_GATE_{name}": str(bound) for name, bound in GATES.items()},
    }


def prepared():
    """Load night one into the home of the environment; return its settings."""
    from flows.settings import Settings
    from kb.store import LocalStore

    found = Settings.read()
    LocalStore(found.store_dir).load_night(1)
    found.memit_file.write_text(json.dumps(QUICK))
    return found


@pytest.fixture
def environment(tmp_path, tiny_model_folder, monkeypatch):
    """The environment of a home of its own."""
    values = environment_of(tmp_path / "home", tiny_model_folder)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return values


@pytest.fixture
def settings(environment):
    """Settings of that home, with night one loaded."""
    return prepared()


def open_gate(monkeypatch, name, bound):
    """Set one gate's bound."""
    monkeypatch.setenv(f"FACTSYNC_GATE_{name}", str(bound))
