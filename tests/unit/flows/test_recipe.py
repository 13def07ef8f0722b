"""What a home keeps of its model: second moments, once, and the pass over them; and what makes one solve."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from editor.model import LanguageModel
from editor.moments import Moments
from editor.presets import PRESETS
from flows.errors import SettingsError
from flows.recipe import Recipe, editing_settings, load_moments, solved_alike
from flows.settings import Settings
from kb.relations import Relations
from tests.unit.editor import tiny

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


def test_second_moments_are_kept_for_all_that_they_were_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another model, tokenizer, precision, block, corpus, number of tokens or guard asks another file."""
    texts = [tmp_path / name for name in ("one.txt", "two.txt")]
    for number, path in enumerate(texts):
        path.write_text(f"Oslo is the capital of Norway. {number}\n", encoding="utf-8")
    model = tiny.model("llama")
    lm = LanguageModel.wrap(model, tiny.tokenizer(), name="tiny")
    memit, relations, asked = PRESETS["smollm2-135m"], Relations.load(), set()

    def no_pass(path: Path) -> Moments:
        asked.add(path.name)
        return SimpleNamespace(require=lambda *_: None)  # type: ignore[return-value]

    monkeypatch.setattr(Moments, "load", no_pass)
    monkeypatch.setattr("pathlib.Path.exists", lambda _self: True)
    settings = Settings(home=tmp_path, model="tiny", moment_tokens=1000)
    fewer = relations.only(("P6",))
    lowered = LanguageModel.wrap(tiny.model("llama").to(torch.bfloat16), tiny.tokenizer(), name="tiny")
    for args in (
        (settings, lm, memit, relations),
        (settings, tiny.language_model(seed=1), memit, relations),
        (settings, lowered, memit, relations),
        (settings, LanguageModel.wrap(model, tiny.tokenizer("pieces"), name="tiny"), memit, relations),
        (settings, lm, replace(memit, layers=(4, 5)), relations),
        (settings.model_copy(update={"moment_tokens": 2000}), lm, memit, relations),
        (settings.model_copy(update={"corpus": texts[0]}), lm, memit, relations),
        (settings.model_copy(update={"corpus": texts[1]}), lm, memit, relations),
        (settings, lm, memit, fewer),
    ):
        load_moments(*args)
    assert len(asked) == 9
    load_moments(settings, lm, replace(memit, steps=7, moment_weight=1.0), relations)
    assert len(asked) == 9, "how target states are found and λ do not count"


def test_the_papers_procedure_knows_no_guards(tmp_path: Path, tiny_model_folder: Path) -> None:
    """In the solve and in what is kept with a checkpoint, whichever file the second moments come from."""
    settings = Settings(home=tmp_path, model=str(tiny_model_folder), moment_tokens=1000)
    lm = LanguageModel.load(str(tiny_model_folder))
    ws: Any = SimpleNamespace(settings=settings, relations=Relations.load().only(("P6",)))
    ours = Recipe.read(ws, lm, [])
    settings.memit_file.write_text(json.dumps({"reference": True}))
    papers = Recipe.read(ws, lm, [])
    assert len(list(settings.moments_dir.iterdir())) == 1
    assert (ours.moments.guards is None, papers.moments.guards) == (False, None)
    assert ours.to_json()["moments"]["guards"]
    assert papers.to_json()["moments"] == {**ours.to_json()["moments"], "guards": "", "guard_share": 0.0}


def test_lambda_second_moments_and_guards_are_the_solve_and_how_states_are_found_is_not() -> None:
    """A recipe read back from the ledger is the same; nights before a rebuild do not count."""
    lm = tiny.language_model("llama")
    memit = replace(PRESETS["smollm2-135m"], layers=(1,))
    moments = Moments.compute(lm, ["Oslo is the capital of Norway and Bergen is not."] * 9, (1,), tokens=90)
    recipe = Recipe(memit, moments)

    def night(recipe: Recipe, *, from_base: bool = False) -> Any:
        return SimpleNamespace(settings=json.loads(json.dumps(recipe.to_json())), from_base=from_base)

    assert solved_alike([], recipe)
    assert solved_alike([night(recipe), night(Recipe(replace(memit, steps=7), moments))], recipe)
    solves = [replace(memit, moment_weight=1.0), replace(memit, history=False), replace(memit, layers=(2,))]
    keys = [replace(moments.key, tokens=80), replace(moments.key, guards="of other relations")]
    measured = [replace(moments, key=key) for key in keys]
    for other in (*(Recipe(solve, moments) for solve in solves), *(Recipe(memit, one) for one in measured)):
        assert not solved_alike([night(other), night(recipe)], recipe)
        assert solved_alike([night(other), night(recipe, from_base=True), night(recipe)], recipe)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layers": [2, 1]}, "ascending"),
        ({"layers": [1, 99]}, "blocks 0 to 5"),
        ({"reference": "yes"}, "'reference' is 'yes': it takes true or false"),
        ({"step": 3}, "'step' is no setting of MEMIT"),
        ({"steps": "many"}, "it takes a whole number"),
        ({"steps": 30.5}, "it takes a whole number"),
        ({"steps": True}, "it takes a whole number"),
        ({"moment_weight": "heavy"}, "it takes a number"),
        ({"history": "false"}, "it takes true or false"),
        ({"layers": [1.0, 2.0]}, "name each block once"),
        ({"model": "another"}, "was calibrated on another model"),
    ],
)
def test_editing_settings_that_cannot_be_meant_are_named(
    tmp_path: Path, tiny_model_folder: Path, given: dict[str, object], said: str
) -> None:
    """With the file, before anything is loaded beside the model."""
    settings = Settings(home=tmp_path, model=str(tiny_model_folder))
    settings.memit_file.write_text(json.dumps({"layers": [1, 2], "moment_weight": 1.0, **given}))
    with pytest.raises(SettingsError, match=said) as caught:
        editing_settings(settings, LanguageModel.load(str(tiny_model_folder)))
    assert str(settings.memit_file) in str(caught.value)


def test_settings_written_by_hand_stand_in_the_preset(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the file leaves out is what the model would be edited with anyway."""
    settings = Settings(home=tmp_path, model=str(tiny_model_folder))
    lm = LanguageModel.load(str(tiny_model_folder))
    preset = replace(PRESETS["smollm2-135m"], layers=(1, 2))
    monkeypatch.setattr("flows.recipe.preset_for", lambda _lm: preset)
    settings.memit_file.write_text(json.dumps({"moment_weight": 20_000.0}))
    assert editing_settings(settings, lm) == replace(preset, moment_weight=20_000.0)
    settings.memit_file.write_text(json.dumps({"layers": [2, 3]}))
    assert editing_settings(settings, lm) == replace(preset, layers=(2, 3))
    settings.memit_file.write_text(json.dumps({"reference": True, "steps": 30}))
    assert editing_settings(settings, lm) == replace(preset.as_reference(), steps=30)
    calibrated = {"settings": preset.to_json(), "trials": [], "reference": True}
    settings.memit_file.write_text(json.dumps(calibrated))
    assert editing_settings(settings, lm) == preset.as_reference()
