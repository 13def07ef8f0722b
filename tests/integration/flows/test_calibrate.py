"""A calibration: what it finds is what nights edit by, and it is of one model."""

import json
import sys

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from editor.model import LanguageModel
from editor.moments import Moments
from editor.presets import MemitSettings
from flows import models, recipe
from flows.cli.main import main
from flows.errors import SettingsError
from flows.workspace import Workspace


@pytest.fixture
def quick(settings, monkeypatch):
    """A tiny model has no preset; 60 steps of it would show nothing more."""
    from editor import calibrate

    few = MemitSettings(layers=(1, 2), moment_weight=1.0, steps=3, refine_steps=0, precision="float32")
    monkeypatch.setattr(calibrate, "preset_for", lambda _lm: few)
    settings.memit_file.unlink()
    return settings


def test_what_it_finds_is_what_nights_edit_by(quick, prefect_server, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["factsync", "calibrate", "--json"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert 3 <= len(said["trials"]) <= 5
    lm = LanguageModel.load(models.base_source(quick), device="cpu")
    found = recipe.editing_settings(quick, lm)
    assert found == MemitSettings.from_json(said["settings"])
    assert found.learning_rate in {trial["learning_rate"] for trial in said["trials"]}
    with Workspace.open(quick) as ws:
        kept = [Moments.load(path) for path in quick.moments_dir.glob("*.safetensors")]
        assert recipe.load_moments(quick, lm, found, ws.relations).key in [each.key for each in kept]
        assert len(list(quick.moments_dir.glob("*"))) == len(kept)
    assert quick.memit_file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    with get_client(sync_client=True) as client:
        key = ArtifactFilterKey(any_=["calibration"])
        (shown,) = client.read_artifacts(artifact_filter=ArtifactFilter(key=key))
    assert "data:image/png;base64" in shown.data


def test_settings_of_another_model_are_refused(settings):
    lm = LanguageModel.load(models.base_source(settings), device="cpu")
    kept = {"model": "0" * 64, "settings": recipe.editing_settings(settings, lm).to_json()}
    settings.memit_file.write_text(json.dumps(kept))
    with pytest.raises(SettingsError, match="factsync calibrate"):
        recipe.editing_settings(settings, lm)
