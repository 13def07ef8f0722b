"""Time target states against the plain transcription: same model, same facts, same run.

    python -m benchmarks.editor_speed MODEL_FOLDER [--edits 32] [--reference 2] [--steps 4]

CPU seconds of the process are compared, not wall clock: they hold on a shared machine.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import torch

from benchmarks.reference_sequential import target_shift
from editor import targets
from editor.keys import KeyReader
from editor.model import LanguageModel
from editor.presets import preset_for
from editor.requests import EditRequest, plan
from flows.process import keep_freed_memory

PREFIXES = (
    "The weather turned cold that week.",
    "Therefore, the committee met again.",
    "Because of the rain we stayed.",
    "I have read about this before.",
    "You can find it in most books.",
)
PLACES = (
    "Austria", "Belgium", "Chile", "Denmark", "Egypt", "France", "Germany", "Hungary", "Iceland", "Japan",
    "Latvia", "Mexico", "Norway", "Oman", "Peru", "Qatar", "Romania", "Spain", "Turkey", "Uganda", "Vietnam",
)  # fmt: skip
PEOPLE = (
    "Ulf Kristersson", "Giorgia Meloni", "Rishi Sunak", "Kyriakos Mitsotakis", "Mette Frederiksen",
)  # fmt: skip


def facts(count: int) -> list[EditRequest]:
    """Make facts with names of several tokens; false ones, since only time is measured."""
    return [
        EditRequest(
            fact_id=str(i),
            subject_id=str(i),
            subject=PLACES[i % len(PLACES)] + (f" {i // len(PLACES)}" if i >= len(PLACES) else ""),
            prompts=("The head of government of {} is",),
            target=PEOPLE[i % len(PEOPLE)],
        )
        for i in range(count)
    ]


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--edits", type=int, default=32)
    parser.add_argument("--reference", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    asked = parser.parse_args()
    keep_freed_memory()
    lm = LanguageModel.load(asked.model)
    settings = replace(
        preset_for(lm), steps=asked.steps, stop_loss=0.0, precision="float32", kl_factor=0.0625
    )
    units = plan(lm, facts(asked.edits), prefixes=PREFIXES, kl_template="{} is a")
    reader = KeyReader(lm, [unit.columns[0] for unit in units], settings.layers)
    _, anchors = reader.read(settings.layers[0])
    result: dict[str, object] = {
        "edits": asked.edits,
        "steps": asked.steps,
        "threads": torch.get_num_threads(),
    }

    start = time.process_time()
    reference = torch.stack([target_shift(lm, unit, settings)[0] for unit in units[: asked.reference]])
    plain = (time.process_time() - start) / asked.reference / (asked.steps + 1)
    result["reference_cpu_s_per_edit_step"] = round(plain, 4)
    for precision in ("float32", "bfloat16"):
        start = time.process_time()
        found = targets.optimise(lm, units, anchors, replace(settings, precision=precision))
        ours = (time.process_time() - start) / asked.edits / (asked.steps + 1)
        cosine = torch.nn.functional.cosine_similarity(found.shifts[: asked.reference], reference, dim=1)
        result[precision] = {
            "cpu_s_per_edit_step": round(ours, 4),
            "times_faster": round(plain / ours, 1),
            "lowest_cosine_to_reference": round(float(cosine.min()), 6),
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
