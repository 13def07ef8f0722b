"""Where a calibration starts to look for λ, and which way it goes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from editor import calibrate as calibrations
from editor import targets
from editor.calibrate import calibrate, weight_from_keys
from editor.presets import preset_for
from tests.unit.editor.conftest import requests_of

if TYPE_CHECKING:
    from editor.model import LanguageModel
    from editor.moments import Moments
    from editor.presets import MemitSettings


def test_lambda_starts_where_one_layer_writes_what_refinement_does_not(
    lm: LanguageModel, moments: Moments, settings: MemitSettings
) -> None:
    """A key that reaches t gets t / (1 + t) of its residual: ten elevenths unrefined, a fifth refined."""
    strength = {
        steps: 1 / weight_from_keys(lm, requests_of(3), replace(settings, refine_steps=steps), moments)
        for steps in (0, 5)
    }
    assert strength[0] / strength[5] == pytest.approx(10 / 0.25)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The rate of every search for target states that is run."""
    rates: list[float] = []
    optimise = targets.optimise

    def noted(*given: Any, **named: Any) -> targets.Targets:
        rates.append(given[3].learning_rate)
        return optimise(*given, **named)

    monkeypatch.setattr(targets, "optimise", noted)
    return rates


def test_what_is_told_of_an_unknown_model_holds_in_its_calibration_too(
    lm: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged there as well, where nobody is to calibrate first."""
    preset_for(lm)
    assert "blocks 1 to 1, unless others are named or `factsync calibrate` finds better ones" in caplog.text


def test_trials_go_uphill_and_share_target_states(
    lm: LanguageModel,
    moments: Moments,
    settings: MemitSettings,
    searches: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibrations, "preset_for", lambda _lm: replace(settings, steps=8))
    before = {layer: lm.layers.matrix(lm.model, layer).clone() for layer in settings.layers}
    done: list[tuple[int, int]] = []
    found = calibrate(
        lm,
        requests_of(4),
        [("The capital of {} is", "France")],
        ["Paris is the capital of France."],
        moments_of=lambda _settings: moments,
        layers=settings.layers,
        progress=lambda stage, *counts: done.append(counts) if stage == "trials" else None,  # type: ignore[arg-type, func-returns-value]
    )
    assert all(torch.equal(lm.layers.matrix(lm.model, layer), kept) for layer, kept in before.items())
    assert done[-1] == (5, 5)
    best, *later = found.trials
    for name, factors in (("moment_weight", (0.3, 3.0)), ("learning_rate", (2.0, 0.5))):
        here = best
        for factor in factors:
            trial = later.pop(0)
            assert getattr(trial, name) == pytest.approx(factor * getattr(here, name))
            if trial.score > here.score:
                best = trial
                break
    assert not later
    assert found.best is best
    assert found.settings.moment_weight == best.moment_weight
    assert found.settings.learning_rate == best.learning_rate
    assert searches == list(dict.fromkeys(trial.learning_rate for trial in found.trials))
