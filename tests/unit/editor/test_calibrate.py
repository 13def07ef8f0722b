"""Where a calibration starts to look for λ."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from editor.calibrate import weight_from_keys
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
