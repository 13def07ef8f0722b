"""Find settings for a new model: layers by causal tracing, λ and rate by trial, and evidence for each.

Trials are dear, so they go uphill: from a first guess to one neighbour in λ and, only where that is worse, to
the other; then likewise in the rate. A target state does not depend on λ, so trials of one rate share theirs.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from editor import delta as deltas
from editor import memit, recall, solve, targets
from editor.digests import digest_of
from editor.errors import RequestError
from editor.keys import KeyReader
from editor.presets import MemitSettings, preset_for
from editor.requests import plan
from editor.tracing import Trace, trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from editor.model import LanguageModel
    from editor.moments import Moments
    from editor.progress import Progress
    from editor.requests import EditRequest, Unit
    from editor.targets import Targets

log = logging.getLogger(__name__)

# A key whose kᵀ(λC)⁻¹k is t gets the share t / (1 + t) of its residual: 10 writes 91% at one layer. Where
# that is refined, a fifth a layer is enough, and a larger λ costs less perplexity (docs/log.md).
_STRENGTH, _REFINED_STRENGTH = 10.0, 0.25
# The cheaper neighbour first: refinement takes fewer steps at a small λ, and the search at a large rate.
_NEIGHBOURS = {"moment_weight": (0.3, 3.0), "learning_rate": (2.0, 0.5)}
_MOST_TRIALS = 1 + sum(map(len, _NEIGHBOURS.values()))


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial on the calibration facts.

    Attributes:
        moment_weight: λ.
        learning_rate: of the target states.
        exact: share of edit prompts answered word for word.
        heldback: share of held-back prompts answered word for word; calibration facts have no old object.
        perplexity_ratio: perplexity after over before.
        residual: mean share of the shift that the write left.
        score: what the trials are ranked by.
    """

    moment_weight: float
    learning_rate: float
    exact: float
    heldback: float
    perplexity_ratio: float
    residual: float
    score: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Settings for a model, with their evidence.

    Attributes:
        settings: what to edit with.
        trace: where the model recalls facts.
        trials: all that was tried.
        model: digest of the model.
    """

    settings: MemitSettings
    trace: Trace
    trials: tuple[Trial, ...]
    model: str

    @property
    def best(self) -> Trial:
        """The trial that the settings come from."""
        return max(self.trials, key=lambda trial: trial.score)

    def to_json(self) -> dict[str, object]:
        """Return plain data for the settings file; `MemitSettings.from_json` reads its "settings"."""
        names = Trial.__slots__
        return {
            "model": self.model,
            "settings": self.settings.to_json(),
            "effect_at_last_subject_token": [round(float(x), 4) for x in self.trace.effects[1]],
            "trials": [{name: getattr(trial, name) for name in names} for trial in self.trials],
        }


def calibrate(
    lm: LanguageModel,
    facts: Sequence[EditRequest],
    known: Sequence[tuple[str, str]],
    texts: Sequence[str],
    *,
    moments_of: Callable[[MemitSettings], Moments],
    layers: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Choose layers by tracing, λ and then the rate by trial on facts; the model is left as it was.

    Args:
        lm: an unedited model.
        facts: some facts with held-back templates; they are written and taken out again.
        known: (template, subject) pairs to trace.
        texts: held-out text for perplexity.
        moments_of: gives the second moments that edits with these settings will have.
        layers: layers to edit; None takes them from the trace.
        progress: called with (stage, done, total).

    Returns:
        The settings and what led to them.

    Raises:
        MethodError: the model has no such layers.
        RequestError: no prompts to trace, or no facts to try.
    """
    if not facts:
        raise RequestError("A calibration needs at least one fact to try.")
    base = preset_for(lm) if layers is None else replace(preset_for(lm), layers=tuple(layers))
    base.require(lm)
    found = trace(lm, known, progress=progress)
    if layers is None:
        base = replace(base, layers=found.suggest())
    moments = moments_of(base)
    before = recall.perplexity(lm, texts)
    search = _remembered()
    trials: list[Trial] = []

    def attempt(settings: MemitSettings) -> float:
        trials.append(_try(lm, facts, settings, moments, search, texts=texts, before=before))
        if progress is not None:
            progress("trials", len(trials), _MOST_TRIALS)
        return trials[-1].score

    best = replace(base, moment_weight=weight_from_keys(lm, facts, base, moments))
    highest = attempt(best)
    for name, factors in _NEIGHBOURS.items():
        for neighbour in [replace(best, **{name: factor * getattr(best, name)}) for factor in factors]:
            score = attempt(neighbour)
            if score > highest:
                best, highest = neighbour, score
                break
    if progress is not None:
        progress("trials", _MOST_TRIALS, _MOST_TRIALS)
    return Calibration(best, found, tuple(trials), lm.digest)


def weight_from_keys(
    lm: LanguageModel, facts: Sequence[EditRequest], settings: MemitSettings, moments: Moments
) -> float:
    """Return the λ at which the median key gets most of its residual written, or as much as refinement needs.

    Args:
        lm: the model.
        facts: whose keys to look at.
        settings: which layers.
        moments: their second moments.

    Returns:
        λ = median of kᵀ C⁻¹ k over the facts' keys at the last layer, divided by the wanted strength.
    """
    units = plan(lm, facts, max_target_tokens=settings.max_target_tokens)
    last = settings.layers[-1]
    keys, _ = KeyReader(lm, [column for unit in units for column in unit.columns], (last,)).read(last)
    C = moments.layer(last, lm.device).double()
    # A little of the identity, since few tokens leave C all but singular.
    C += 1e-4 * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype, device=C.device)
    K = keys.double().T
    reach = (K * torch.cholesky_solve(K, solve.factor(C))).sum(dim=0)
    return float(reach.median()) / (_REFINED_STRENGTH if settings.refine_steps else _STRENGTH)


def _remembered() -> targets.Search:
    """Return `targets.optimise` that remembers what it found for the same facts on the same weights."""
    found: dict[str, Targets] = {}

    def search(
        lm: LanguageModel,
        units: Sequence[Unit],
        anchors: Tensor,
        settings: MemitSettings,
        **more: Callable[[int, int], None],
    ) -> Targets:
        key = digest_of(settings.of_targets())
        if key not in found:
            found[key] = targets.optimise(lm, units, anchors, settings, **more)
        return found[key]

    return search


def _try(
    lm: LanguageModel,
    facts: Sequence[EditRequest],
    settings: MemitSettings,
    moments: Moments,
    search: targets.Search,
    *,
    texts: Sequence[str],
    before: float,
) -> Trial:
    saved = deltas.copies(lm, settings.layers)
    try:
        outcome = memit.edit(lm, facts, settings=settings, moments=moments, search=search)
        results = recall.check(lm, facts, greedy=False)
        ratio = recall.perplexity(lm, texts) / before
    finally:
        deltas.put_back(lm, saved)
    exact = _share([prompt.exact for result in results for prompt in result.prompts])
    heldback = _share([prompt.success for result in results for prompt in result.heldback])
    residual = sum(report.residual for report in outcome.reports) / max(1, len(outcome.reports))
    # Fluency is dear: one percent of perplexity weighs as much as two points of exact recall.
    score = exact + 0.5 * heldback - 2.0 * max(0.0, ratio - 1.0)
    log.info(
        "λ %.0f, rate %g: exact %.2f, held back %.2f, perplexity x%.3f",
        settings.moment_weight,
        settings.learning_rate,
        exact,
        heldback,
        ratio,
    )
    return Trial(settings.moment_weight, settings.learning_rate, exact, heldback, ratio, residual, score)


def _share(marks: Sequence[bool]) -> float:
    return sum(marks) / len(marks) if marks else 0.0
