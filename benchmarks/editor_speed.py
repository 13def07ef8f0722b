"""Time target states against the plain transcription: same model, same facts, same run.

    python -m benchmarks.editor_speed MODEL_FOLDER [--edits 33] [--reference 3] [--steps 4]
    python -m benchmarks.editor_speed MODEL_FOLDER --converge [--edits 64] [--reference 3]

The first compares the same objective, step by step. The second lets both go on until their loss is below
0.05, the published stop: the transcription over five random prefixes and the KL prompt, ours over the
relation's templates, and with the word's end, which ours asks besides.

Seconds by the clock and CPU seconds of the process are both given: on a shared machine only the latter hold,
and with two threads on a quiet one the former are what a user waits.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

import torch

from benchmarks.clock import Clock
from benchmarks.reference_sequential import target_shift
from editor import targets
from editor.allocator import spare_memory
from editor.keys import KeyReader
from editor.model import LanguageModel
from editor.presets import preset_for
from editor.requests import EditRequest, plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from editor.precision import Precision
    from editor.presets import MemitSettings
    from editor.requests import Unit

PREFIXES = (
    "The weather turned cold that week.",
    "Therefore, the committee met again.",
    "Because of the rain we stayed.",
    "I have read about this before.",
    "You can find it in most books.",
)
TEMPLATES = (
    "The head of government of {} is",
    "In {}, the head of government is",
    "The government of {} is led by",
    "The person who heads the government of {} is",
    "As for {}, its head of government is",
)
LEARNT = 0.05
"""Mean negative log-likelihood of a target's tokens below which a name counts as learnt (nats)."""

MOST_STEPS = 200
"""Of either, which end when a name is learnt."""

PLACES = (
    "Austria", "Belgium", "Chile", "Denmark", "Egypt", "France", "Germany", "Hungary", "Iceland", "Japan",
    "Latvia", "Mexico", "Norway", "Oman", "Peru", "Qatar", "Romania", "Spain", "Turkey", "Uganda", "Vietnam",
)  # fmt: skip
PEOPLE = (
    "Ulf Kristersson", "Giorgia Meloni", "Rishi Sunak", "Kyriakos Mitsotakis", "Mette Frederiksen",
)  # fmt: skip


def facts(count: int, prompts: tuple[str, ...] = TEMPLATES[:1]) -> list[EditRequest]:
    """Make facts with names of several tokens; false ones, since only time is measured."""
    return [
        EditRequest(
            fact_id=str(i),
            subject_id=str(i),
            subject=PLACES[i % len(PLACES)] + (f" {i // len(PLACES)}" if i >= len(PLACES) else ""),
            prompts=prompts,
            target=PEOPLE[i % len(PEOPLE)],
        )
        for i in range(count)
    ]


def same_objective(lm: LanguageModel, *, edits: int, reference: int, steps: int) -> dict[str, object]:
    """Compare the cost of a step, and the states after all of them.

    In rounds of one edit of the transcription and a part of ours, so that a machine whose speed drifts is the
    same for both; the median round is given.
    """
    settings = replace(
        preset_for(lm), steps=steps, turns=1, stop_loss=0.0, precision="float32", kl_factor=0.0625
    )
    units = plan(lm, facts(edits), prefixes=PREFIXES, kl_template="{} is a")
    anchors = anchors_of(lm, units, settings)
    plain: list[Clock] = []
    ours: dict[Precision, list[Clock]] = {"float32": [], "bfloat16": []}
    cosines: dict[Precision, list[float]] = {"float32": [], "bfloat16": []}
    lowest = 1.0
    for number in range(reference):
        part, start = units[number::reference], Clock()
        state = target_shift(lm, part[0], settings)[0]
        plain.append(start.since() / (steps + 1))
        exact = None
        for precision, spent in ours.items():
            start = Clock()
            found = targets.optimise(
                lm, part, anchors[number::reference], replace(settings, precision=precision)
            )
            spent.append(start.since() / (len(part) * (steps + 1)))
            cosines[precision].append(float(torch.cosine_similarity(found.shifts[0], state, dim=0)))
            exact = found.shifts if exact is None else exact
            lowest = min(lowest, float(torch.cosine_similarity(found.shifts, exact, dim=1).min()))
    result: dict[str, object] = {"reference_per_edit_step": _median(plain).shown()}
    for precision, spent in ours.items():
        pairs = list(zip(plain, spent, strict=True))
        result[precision] = {
            "per_edit_step": _median(spent).shown(),
            "times_faster": round(median(one.s / own.s for one, own in pairs), 1),
            "times_faster_cpu": round(median(one.cpu_s / own.cpu_s for one, own in pairs), 1),
            "lowest_cosine_to_reference": round(min(cosines[precision]), 6),
        }
    return {**result, "lowest_cosine_of_all_to_float32": round(lowest, 6)}


def _median(spent: Sequence[Clock]) -> Clock:
    return Clock(median(one.s for one in spent), median(one.cpu_s for one in spent))


def converged(lm: LanguageModel, *, edits: int, reference: int) -> dict[str, object]:
    """Compare the cost of a name that is learnt."""
    published = replace(preset_for(lm).as_reference(), steps=MOST_STEPS, stop_loss=LEARNT)
    units = plan(lm, facts(edits), prefixes=PREFIXES, kl_template="{} is a")
    start = Clock()
    took = [target_shift(lm, unit, published)[1:] for unit in units[:reference]]
    plain = start.since() / reference
    result: dict[str, object] = {
        "reference": {
            "edits": reference,
            "per_edit": plain.shown(),
            "steps": [steps for steps, _ in took],
            "losses": [round(loss, 4) for _, loss in took],
        }
    }
    in_turns = replace(preset_for(lm), steps=MOST_STEPS)
    rates = (in_turns.learning_rate, 0.35, 0.4, 0.5)
    for rate in rates:
        settings = replace(in_turns, learning_rate=rate)
        units = plan(lm, facts(edits, TEMPLATES), endings=True)
        start = Clock()
        found = targets.optimise(lm, units, anchors_of(lm, units, settings), settings)
        ours = start.since() / edits
        result[f"adam, five templates in turns, rate {rate}"] = {
            "per_edit": ours.shown(),
            "times_faster": round(plain.s / ours.s, 1),
            "times_faster_cpu": round(plain.cpu_s / ours.cpu_s, 1),
            "steps": round(float(found.steps.float().mean()), 1),
            "mean_loss": round(float(found.losses.mean()), 4),
            "learnt": round(float((found.losses < LEARNT).float().mean()), 3),
        }
    return result


def anchors_of(lm: LanguageModel, units: Sequence[Unit], settings: MemitSettings) -> Tensor:
    """Return the states that the shifts start from."""
    reader = KeyReader(lm, [unit.columns[0] for unit in units], settings.layers)
    return reader.read(settings.layers[0])[1]


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--edits", type=int, default=33)
    parser.add_argument("--reference", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--converge", action="store_true")
    asked = parser.parse_args()
    spare_memory()
    lm = LanguageModel.load(asked.model)
    result: dict[str, object] = {
        "edits": asked.edits,
        "threads": torch.get_num_threads(),
    }
    if asked.converge:
        result |= converged(lm, edits=asked.edits, reference=asked.reference)
    else:
        result |= {"steps": asked.steps}
        result |= same_objective(lm, edits=asked.edits, reference=asked.reference, steps=asked.steps)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
