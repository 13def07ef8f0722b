"""A home with the sample's first night, a tiny model, and gates that let it through."""

import json
import shutil

import pytest

RELATIONS = "P6,P35,P108,P1308"
"""Enough for every kind of change; the whole sample is what `make demo` runs."""

QUICK = {"layers": [1, 2], "moment_weight": 1.0, "steps": 3, "turns": 1, "refine_steps": 1}

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


@pytest.fixture(scope="session")
def first_home(tiny_model_folder, prefect_server, tmp_path_factory):
    """A home after its first night, made once; tests start from copies. Returns it and the night."""
    from flows.sync import sync

    folder = tmp_path_factory.mktemp("first") / "home"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment_of(folder, tiny_model_folder).items():
            patch.setenv(name, value)
        prepared()
        return folder, sync()


@pytest.fixture(scope="session")
def second_home(first_home, tiny_model_folder, tmp_path_factory):
    """The same home after its second night. Returns it and that night."""
    from flows.sync import sync
    from kb.store import LocalStore

    folder = shutil.copytree(first_home[0], tmp_path_factory.mktemp("second") / "home")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment_of(folder, tiny_model_folder).items():
            patch.setenv(name, value)
        LocalStore(folder / "store").load_night(2)
        return folder, sync()


@pytest.fixture
def one_night(environment, first_home):
    """Settings of a home of its own after the first night, and the night."""
    from flows.settings import Settings

    shutil.copytree(first_home[0], environment["FACTSYNC_HOME"])
    return Settings.read(), first_home[1]


@pytest.fixture
def two_nights(environment, first_home, second_home):
    """Settings of a home of its own after two nights (facts came, were replaced and left), and both."""
    from flows.settings import Settings

    shutil.copytree(second_home[0], environment["FACTSYNC_HOME"])
    return Settings.read(), first_home[1], second_home[1]


def open_gate(monkeypatch, name, bound):
    """Set one gate's bound."""
    monkeypatch.setenv(f"FACTSYNC_GATE_{name}", str(bound))
