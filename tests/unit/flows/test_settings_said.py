"""What a first user may write wrongly, and what is said of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

from editor.errors import ModelLoadError
from editor.model import chosen_device
from editor.presets import PRESETS
from flows.dry_run import dry_run
from flows.errors import SettingsError, UnknownModelNameError
from flows.recipe import require_settings
from flows.settings import Settings
from flows.workspace import opened_model
from kb.store import LocalStore
from storage.errors import LedgerUrlError
from storage.ledger import Ledger

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "MODEL", "MODEL_NAME", "LEDGER_URL", "DEVICE", "RELATIONS"):
        monkeypatch.delenv(f"FACTSYNC_{name}", raising=False)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("# bounds\n\nFACTSYNC_GATE_EXACT 0.9\n", 3),
        ("FACTSYNC_MODEL=mine\nFACTSYNC_GATE_EXACT\n", 2),
        ("FACTSYNC_MODEL=mine\r\n\r\n=0.9\r\n", 3),
        ('FACTSYNC_CONTACT="ann@wiki.invalid\nFACTSYNC_MODEL=mine\n', 1),
    ],
)
def test_a_line_that_is_no_setting_is_named(tmp_path: Path, text: str, line: int) -> None:
    """The readers of such files would go on without it."""
    (tmp_path / "factsync.env").write_text(text, newline="")
    with pytest.raises(SettingsError, match=rf"factsync\.env, line {line} is no setting: write"):
        Settings.read(tmp_path)


def test_a_line_that_cannot_be_read_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "factsync.env").write_text("FACTSYNC_LEDGER_URL postgresql://me:secret@host/db\n")
    with pytest.raises(SettingsError) as caught:
        Settings.read(tmp_path)
    assert "secret" not in str(caught.value)


def test_comments_quotes_and_exports_are_read(tmp_path: Path) -> None:
    lines = (
        "\ufeff# mine",
        "export FACTSYNC_MAX_EDITS=7",
        "",
        "FACTSYNC_CONTACT='a b' # me",
        "FACTSYNC_RELATIONS=",
    )
    (tmp_path / "factsync.env").write_text("\n".join(lines), encoding="utf-8")
    found = Settings.read(tmp_path)
    assert (found.max_edits, found.contact, found.relations) == (7, "a b", [])


@pytest.mark.parametrize("name", ["FACTSYNC_GATE_FOO", "FACTSYNC_GATES"])
def test_a_gate_that_there_is_not_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Like no gate's name, and yet meant for one."""
    monkeypatch.setenv(name, "0.1")
    with pytest.raises(SettingsError, match=f"{name} is no setting: the gates are .*FACTSYNC_GATE_EXACT"):
        Settings.read(tmp_path)


@pytest.mark.parametrize("url", ["mine/my.db", "sqlite:///mine/my.db"])
def test_a_relative_ledger_counts_from_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """As every other path that is set; nothing is made where the command is run."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere):
        folder.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("FACTSYNC_LEDGER_URL", url)
    settings = Settings.read(home)
    said = r"with the ledger .*home/mine/my\.db.*FACTSYNC_LEDGER_URL"
    with pytest.raises(UnknownModelNameError, match=said), opened_model(settings):
        pass
    with Ledger.open(settings.resolved_ledger_url) as ledger:
        ledger.ensure_model("smollm2", "smollm2", "0" * 64)
    assert (home / "mine" / "my.db").exists()
    assert not list(elsewhere.iterdir())
    with opened_model(settings) as (_, model):
        assert model.name == "smollm2"


def test_any_other_ledger_is_where_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in (f"sqlite:///{tmp_path}/there.db", "postgresql://me:se%40cret@host/db"):
        monkeypatch.setenv("FACTSYNC_LEDGER_URL", url)
        assert Settings.read(tmp_path / "home").resolved_ledger_url == url
    monkeypatch.setenv("FACTSYNC_LEDGER_URL", "mysql://host/db")
    with pytest.raises(LedgerUrlError, match="not in mysql"):
        _ = Settings.read(tmp_path).resolved_ledger_url


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        ("[]", "it takes a JSON object"),
        ("{'steps': 3}", r"it is no JSON \(.*line 1.*\)\. Correct"),
        ('{"f\u00fcr": 3}', r"it is no JSON \(.*utf-8.*\)\. Correct"),
        ('{"reference": "yes"}', "'reference' is 'yes': it takes true or false"),
        ('{"blocks": [1, 2]}', "'blocks' is no setting of MEMIT: did you mean 'layers'"),
        ('{"stepz": 3}', "'stepz' is no setting of MEMIT: did you mean 'steps'"),
        ('{"colour": 3}', r"'colour' is no setting of MEMIT: editor/presets\.py"),
        ('{"optimiser": "lbfgs"}', "'optimiser' is no setting of MEMIT"),
        ('{"layers": 4}', "layers is 4: it takes a list"),
        ('{"layers": [5, 4]}', "ascending"),
        ('{"moment_weight": "heavy"}', "it takes a number"),
        ('{"settings": [4, 5]}', "'settings' takes a JSON object"),
        ('{"settings": {"layers": [4, 5]}}', "'settings' lacks 'moment_weight'"),
        ('{"settings": {"layers": [4], "moment_weight": 1.0, "step": 3}}', "did you mean 'steps'"),
    ],
)
def test_editing_settings_are_refused_before_anything_is_asked(tmp_path: Path, text: str, said: str) -> None:
    """A plan fails, too, which never sees the model."""
    settings = Settings.read(tmp_path)
    LocalStore(settings.store_dir).load_night(1)
    settings.memit_file.write_text(text, encoding="latin-1")
    with pytest.raises(SettingsError, match=said) as caught:
        dry_run(settings)
    assert str(caught.value).startswith(f"{settings.memit_file}: ")
    assert "factsync calibrate" in str(caught.value)


@pytest.mark.parametrize("preset", [*PRESETS.values(), None])
def test_what_a_model_would_take_is_not_refused_before_it_is_known(tmp_path: Path, preset: object) -> None:
    """Whatever preset the fields stand in."""
    settings = Settings.read(tmp_path)
    assert require_settings(settings) is None
    taken: list[dict[str, object]] = [
        {"steps": 0},
        {"turns": 20},
        {"reference": True},
    ]
    whole = PRESETS["gpt2-xl"] if preset is None else preset
    taken += [{"settings": whole.to_json(), "model": "0" * 64, "trials": []}]  # type: ignore[attr-defined]
    for given in taken:
        settings.memit_file.write_text(json.dumps(given))
        require_settings(settings)


@pytest.mark.parametrize("name", ["tpux", "cuda:", "cuda:-1", "cuda:x", "auto", "CPU", "mps"])
def test_a_device_of_no_known_form_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("FACTSYNC_DEVICE", name)
    with pytest.raises(SettingsError, match=f"FACTSYNC_DEVICE: '{name}' is no device; it takes cpu"):
        Settings.read(tmp_path)


def test_a_device_that_is_not_here_is_refused_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where settings are read: another machine's home may be looked at here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("FACTSYNC_DEVICE", "cuda")
    settings = Settings.read(tmp_path)
    LocalStore(settings.store_dir).load_night(1)
    with pytest.raises(SettingsError, match="FACTSYNC_DEVICE: There is no cuda here"):
        dry_run(settings)
    for taken, found in (("cpu", "cpu"), ("", None)):
        monkeypatch.setenv("FACTSYNC_DEVICE", taken)
        settings = Settings.read(tmp_path)
        assert settings.device == found
        require_settings(settings)


def test_weights_go_where_a_device_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two processors is there, the third is not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert chosen_device(None) == torch.device("cuda")
    assert chosen_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ModelLoadError, match=r"no cuda:2 here .*finds 2"):
        chosen_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_device(None) == torch.device("cpu")
    with pytest.raises(ModelLoadError, match="'tpux' is no device of torch"):
        chosen_device("tpux")


@pytest.mark.parametrize("name", ["mps", "xpu", "meta"])
def test_weights_go_where_they_can_be_edited(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Even where torch has such a device: a solve wants float64, and batches are sized by CUDA's memory."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(ModelLoadError, match=f"'{name}' cannot be used, factsync edits on cpu or cuda"):
        chosen_device(name)


def test_an_empty_model_is_not_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTSYNC_MODEL", " ")
    with pytest.raises(SettingsError, match="FACTSYNC_MODEL: it is empty"):
        Settings.read(tmp_path)


def test_an_empty_home_is_not_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTSYNC_HOME", "")
    with pytest.raises(SettingsError, match="FACTSYNC_HOME is empty: name a folder"):
        Settings.read()
