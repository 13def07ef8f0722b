"""What a home keeps of its model: second moments, once, and the pass over them while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from editor.model import LanguageModel
from flows.models import editing_settings, load_moments
from flows.settings import Settings
from kb.relations import Relations

if TYPE_CHECKING:
    from pathlib import Path


def test_an_interrupted_pass_goes_on_and_leaves_one_file(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass is kept beside its place while it runs; once the moments are saved they stand alone."""
    settings = Settings(home=tmp_path, model=str(tiny_model_folder), moment_tokens=20_000)
    lm = LanguageModel.load(str(tiny_model_folder))
    memit, relations = editing_settings(settings, lm), Relations.load()

    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("editor.moments.measured", interrupted)  # of guards, after the pass over text
        with pytest.raises(KeyboardInterrupt):
            load_moments(settings, lm, memit, relations)
    assert [path.suffix for path in settings.moments_dir.iterdir()] == [".part"]
    with monkeypatch.context() as patched:
        patched.setattr("editor.sums.Sums.add", interrupted)  # nothing is counted again
        made = load_moments(settings, lm, memit, relations)
    assert [path.suffix for path in settings.moments_dir.iterdir()] == [".safetensors"]
    assert load_moments(settings, lm, memit, relations).key == made.key
