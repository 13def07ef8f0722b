"""The gates between a candidate checkpoint and the model people use.

A gate reads one measured number, compares it with its threshold and says what it protects. A candidate is
promoted when every gate passes; otherwise yesterday's model stays and the owed edits stay owed.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flows.settings import GateThresholds


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a night's check measured. Shares are in [0, 1]; None where nothing could be measured.

    Attributes:
        efficacy: share of tonight's edit prompts with P(new) > P(old).
        exact: share of tonight's facts said word for word, under greedy decoding, on their first prompt.
        whole: share of tonight's facts said so and with nothing more in the last word.
        heldback: share of held-back phrasings with P(new) > P(old).
        heldback_exact: share of held-back phrasings answered word for word.
        efficacy_before: `efficacy` before the edit.
        exact_before: `exact` before the edit.
        retention: share of sampled older live facts still preferred over their rivals.
        retention_exact: share of sampled older live facts still said word for word.
        neighbours: share of neighbour prompts that still prefer the base model's own answer to the objects
            edited tonight in their relation, the first five: Meng et al.'s neighbourhood success, with the
            model's own answer as the true object.
        neighbours_same: share of neighbour prompts whose greedy answer begins as it did, by its first word.
        perplexity: on held-out text, after.
        perplexity_base: on the same text, of the base model.
        retracted: share of retractions after which the object that was taken out is no longer preferred to
            what the base model says.
        norm: how far the edited weights are from the base model's: the largest ‖W - W₀‖ / ‖W₀‖ of a layer.
    """

    efficacy: float | None
    exact: float | None
    heldback: float | None
    heldback_exact: float | None
    efficacy_before: float | None
    exact_before: float | None
    retention: float | None
    retention_exact: float | None
    neighbours: float | None
    neighbours_same: float | None
    perplexity: float
    perplexity_base: float
    norm: float | None = None
    retracted: float | None = None
    whole: float | None = None

    @property
    def perplexity_rise(self) -> float:
        """Relative rise of perplexity over the base model."""
        return self.perplexity / self.perplexity_base - 1.0

    def to_json(self) -> dict[str, Any]:
        """The metrics as plain values, for the ledger; JSON has no number that is not finite, so None is one.

        The gates judge the numbers themselves.
        """
        values = {**asdict(self), "perplexity_rise": self.perplexity_rise}
        return {
            name: value if value is None or math.isfinite(value) else None for name, value in values.items()
        }


@dataclass(frozen=True, slots=True)
class Note:
    """What stands behind a gate.

    Attributes:
        protects: what would be lost without it.
        evidence: what its default bound rests on (benchmarks/RESULTS.md).
        advice: what to do when it fails.
    """

    protects: str
    evidence: str
    advice: str


NOTES = {
    "efficacy": Note(
        "tonight's facts took",
        "100 % on two real nights; the unedited model 3 and 4 %",
        "look at the facts that fell short (`edit_history`); where the write is weak on all of them, run "
        "`factsync calibrate`, or lower `moment_weight` in memit.json",
    ),
    "exact": Note(
        "the model says tonight's facts word for word",
        "100 % on two real nights; 73 % where the weights were written only once",
        "look for long or unusual labels; where many facts fall short, raise `steps` or `refine_steps` in "
        "memit.json",
    ),
    "heldback": Note(
        "the facts hold in words nobody trained",
        "99.5 and 98.6 % on two real nights; a target state of one wording alone falls far below",
        "give the relation more edit templates (`factsync relations preview`)",
    ),
    "retention": Note(
        "older nights are not forgotten",
        "100 % with the history in the solve; published MEMIT: 82 % of the first of ten batches",
        "`factsync rebuild` with `--refine` wins back what slipped, with `--anew` finds every state again",
    ),
    "neighbours": Note(
        "subjects nobody touched keep their own answers",
        "95 and 97 % on two real nights with guards; 45 % kept their first word without",
        "raise `drift_weight` in memit.json, or give the relation's kind more guard subjects",
    ),
    "perplexity": Note(
        "the model still writes well",
        "+0.2 % on each of two real nights; +43 % after ten batches of published MEMIT",
        "raise `drift_weight` or lower `learning_rate` in memit.json, then `factsync rebuild`",
    ),
}
"""By name of the gate."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate's verdict."""

    name: str
    value: float | None
    threshold: float
    passed: bool
    protects: str

    @property
    def note(self) -> Note | None:
        """What stands behind it."""
        return NOTES.get(self.name)

    def __str__(self) -> str:
        """One line for logs and tables."""
        value = "not measured" if self.value is None else f"{self.value:.3f}"
        return f"{self.name} {value} (bound {self.threshold:.3f}): {'passed' if self.passed else 'FAILED'}"


def judge(metrics: Metrics, bounds: GateThresholds) -> list[Gate]:
    """Compare every measured number with its bound.

    A number that could not be measured (no older facts on the first night) passes: there is nothing to
    protect yet. A perplexity that is not finite fails, as any comparison with NaN does.
    """

    def at_least(name: str, value: float | None, threshold: float) -> Gate:
        return Gate(name, value, threshold, value is None or value >= threshold, NOTES[name].protects)

    rise = metrics.perplexity_rise
    return [
        at_least("efficacy", metrics.efficacy, bounds.efficacy),
        at_least("exact", metrics.exact, bounds.exact),
        at_least("heldback", metrics.heldback, bounds.heldback),
        at_least("retention", metrics.retention, bounds.retention),
        at_least("neighbours", metrics.neighbours, bounds.neighbours),
        Gate("perplexity", rise, bounds.perplexity, rise <= bounds.perplexity, NOTES["perplexity"].protects),
    ]


def advice(gates: Sequence[Gate]) -> str:
    """What to do about the gates that failed, one sentence each."""
    return " ".join(
        f"{gate.name.capitalize()}: {gate.note.advice}." for gate in gates if gate.note and not gate.passed
    )
