"""Settings come from the environment or the home's file, and a wrong one is named."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from flows.errors import SettingsError
from flows.settings import Settings
from kb.trust import Trust


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("HOME", "RELATIONS", "MODEL", "PREFECT_PORT", "LEDGER_URL"):
        monkeypatch.delenv(f"FACTSYNC_{name}", raising=False)


def test_all_state_lies_under_home(tmp_path):
    settings = Settings.read(tmp_path)
    places = [
        settings.checkpoints_dir,
        settings.models_dir,
        settings.moments_dir,
        settings.store_dir,
        settings.prefect_dir,
    ]
    assert all(place.is_relative_to(tmp_path) for place in places)
    assert settings.resolved_ledger_url == f"sqlite:///{tmp_path / 'ledger.db'}"


def test_home_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FACTSYNC_HOME", str(tmp_path))
    assert Settings.read().home == tmp_path


def test_lists_are_comma_separated(tmp_path, monkeypatch):
    monkeypatch.setenv("FACTSYNC_RELATIONS", "P6, P35")
    assert Settings.read(tmp_path).relations == ["P6", "P35"]


def test_the_home_has_its_own_file(tmp_path):
    (tmp_path / "factsync.env").write_text("FACTSYNC_MODEL=/models/mine\n")
    settings = Settings.read(tmp_path)
    assert settings.model == "/models/mine"
    assert settings.resolved_model_name == "mine"


def test_the_gates_are_in_the_homes_file_too(tmp_path, monkeypatch):
    (tmp_path / "factsync.env").write_text("FACTSYNC_GATE_PERPLEXITY=0.01\nFACTSYNC_GATE_EXACT=0.9\n")
    gates = Settings.read(tmp_path).gates
    assert (gates.perplexity, gates.exact, gates.efficacy) == (0.01, 0.9, 0.95)
    monkeypatch.setenv("FACTSYNC_GATE_PERPLEXITY", "0.02")
    assert Settings.read(tmp_path).gates.perplexity == 0.02


def test_a_wrong_gate_names_its_variable(tmp_path):
    (tmp_path / "factsync.env").write_text("FACTSYNC_GATE_EXACT=1.5\n")
    with pytest.raises(SettingsError, match="FACTSYNC_GATE_EXACT"):
        Settings.read(tmp_path)


def test_a_wrong_value_names_its_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("FACTSYNC_PREFECT_PORT", "many")
    with pytest.raises(SettingsError, match="FACTSYNC_PREFECT_PORT"):
        Settings.read(tmp_path)


def test_trust_is_the_default_unless_it_is_set(tmp_path):
    assert Settings.read(tmp_path).trust == Trust()


def test_trust_is_settings(tmp_path):
    (tmp_path / "factsync.env").write_text(
        "FACTSYNC_TRUST_BLOCK_SUBJECTS=q183, Q64\n"
        "FACTSYNC_TRUST_ALLOW_SUBJECTS=Q142\n"
        "FACTSYNC_TRUST_BLOCK_RELATIONS=P39\n"
        "FACTSYNC_TRUST_BLOCK_VALUES=Q63641\n"
        "FACTSYNC_TRUST_BAD_WORDS=bogus,hoax\n"
        "FACTSYNC_TRUST_MIN_REFERENCES=1\n"
        "FACTSYNC_TRUST_MIN_SIGHTINGS=3\n"
        "FACTSYNC_BURST_TOTAL=500\n"
    )
    assert Settings.read(tmp_path).trust == Trust(
        block_subjects=frozenset({"Q183", "Q64"}),
        allow_subjects=frozenset({"Q142"}),
        block_properties=frozenset({"P39"}),
        block_values=frozenset({"Q63641"}),
        bad_words=frozenset({"bogus", "hoax"}),
        min_references=1,
        min_sightings=3,
        burst_total=500,
    )


def test_a_misspelt_id_in_a_block_list_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FACTSYNC_TRUST_BLOCK_SUBJECTS", "Q183, Germany")
    with pytest.raises(SettingsError, match="FACTSYNC_TRUST_BLOCK_SUBJECTS"):
        Settings.read(tmp_path)


@pytest.mark.parametrize("variable", ["FACTSYNC_RELATIONS_FILE", "FACTSYNC_CORPUS", "FACTSYNC_HELDOUT"])
def test_a_relative_path_counts_from_the_home(tmp_path, monkeypatch, variable):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere):
        folder.mkdir()
        (folder / "mine.txt").write_text("")
    (home / "factsync.env").write_text(f"{variable}=mine.txt\n")
    monkeypatch.chdir(elsewhere)
    found = getattr(Settings.read(home), variable.removeprefix("FACTSYNC_").lower())
    assert found == home / "mine.txt"


def test_a_relative_model_folder_counts_from_the_home(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("FACTSYNC_MODEL", "mine")
    settings = Settings.read(tmp_path)
    assert settings.model == str(tmp_path / "mine")
    assert settings.resolved_model_name == "mine"
    monkeypatch.setenv("FACTSYNC_MODEL", "EleutherAI/gpt-j-6b")
    assert Settings.read(tmp_path).model == "EleutherAI/gpt-j-6b"


@pytest.mark.parametrize("variable", ["FACTSYNC_HOME", "FACTSYNC_MODEL", "FACTSYNC_CORPUS"])
def test_the_home_of_a_user_whom_there_is_not_is_named(tmp_path, monkeypatch, variable):
    monkeypatch.setenv("FACTSYNC_HOME", str(tmp_path))
    monkeypatch.setenv(variable, "~nobody-of-this-name/a")
    with pytest.raises(SettingsError, match=f"{variable} is ~nobody-of-this-name/a: there is no such user"):
        Settings.read()


@pytest.mark.parametrize("variable", ["FACTSYNC_RELATIONS_FILE", "FACTSYNC_CORPUS", "FACTSYNC_HELDOUT"])
def test_a_file_that_is_not_there_is_named(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "nowhere.txt")
    with pytest.raises(SettingsError, match=rf"{variable}.*{tmp_path}/nowhere\.txt"):
        Settings.read(tmp_path)


def test_a_moment_without_a_zone_is_utc(tmp_path, monkeypatch):
    monkeypatch.setenv("FACTSYNC_SINCE", "2026-11-01")
    assert Settings.read(tmp_path).since == datetime(2026, 11, 1, tzinfo=UTC)
    monkeypatch.setenv("FACTSYNC_SINCE", "2026-11-01T02:00:00+02:00")
    assert Settings.read(tmp_path).since == datetime(2026, 11, 1, 2, tzinfo=timezone(timedelta(hours=2)))


def test_json_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FACTSYNC_WIKIBASE_PROPERTIES", "start=P5")
    with pytest.raises(SettingsError, match=r"wikibase_properties.*JSON"):
        Settings.read(tmp_path)


def test_a_file_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "factsync.env").write_bytes("FACTSYNC_TRUST_BAD_WORDS=f\u00fcr\n".encode("latin-1"))
    with pytest.raises(SettingsError, match=r"factsync\.env.*UTF-8"):
        Settings.read(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("FACTSYNC_TRUST_BLOCK_SUBJECT", "FACTSYNC_TRUST_BLOCK_SUBJECTS"),
        ("FACTSYNC_GATE_EXACTT", "FACTSYNC_GATE_EXACT"),
    ],
)
def test_a_misspelt_name_is_refused(tmp_path, monkeypatch, wrong, meant):
    monkeypatch.setenv(wrong, "1")
    with pytest.raises(SettingsError, match=rf"{wrong} is no setting: did you mean {meant}"):
        Settings.read(tmp_path)
    monkeypatch.delenv(wrong)
    (tmp_path / "factsync.env").write_text(f"{wrong}=1\n")
    with pytest.raises(SettingsError, match=wrong):
        Settings.read(tmp_path)


def test_a_name_that_is_like_no_settings_is_let_be(tmp_path, monkeypatch):
    monkeypatch.setenv("FACTSYNC_IMAGE_TAG", "2026-11")
    monkeypatch.setenv("TRUST_BLOCK_SUBJECT", "Q183")
    assert Settings.read(tmp_path).trust == Trust()


def test_only_a_home_of_the_local_store_plays_it(tmp_path, monkeypatch):
    Settings.read(tmp_path).require_embedded("demo")
    monkeypatch.setenv("FACTSYNC_ENDPOINT", "https://query.wikidata.org/sparql")
    with pytest.raises(SettingsError, match="FACTSYNC_ENDPOINT"):
        Settings.read(tmp_path).require_embedded("demo")


@pytest.mark.parametrize("made", [True, False])
def test_a_model_may_lie_under_the_users_home(tmp_path, monkeypatch, made):
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    if made:
        (tmp_path / "user" / "models" / "x").mkdir(parents=True)
    monkeypatch.setenv("FACTSYNC_MODEL", "~/models/x")
    assert Settings.read(tmp_path / "home").model == str(tmp_path / "user" / "models" / "x")
