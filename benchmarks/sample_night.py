"""Edit the sample's first night with other settings and print what the exam says of each.

    FACTSYNC_HOME=HOME python -m benchmarks.sample_night [refine_steps=0 learning_rate=0.35,guard_share=4 ...]

One trial an argument: the settings of `editor.presets.MemitSettings`, and `guard_share`, that differ from the
preset; none runs the preset. HOME is one that `make demo` has filled: model and second moments are taken from
there, its store is set to night one, and its ledger is not touched. A trial takes as long as the night's
edit and its exam.
"""

from __future__ import annotations

import argparse
import ast
import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.clock import Clock
from editor import delta as deltas
from editor import memit, recall
from editor.sampling import PAPER_TOP_K, sample_prefixes
from flows import checking, editing, models, neighbours, planning, recipe
from flows.dry_run import dry_run
from flows.params import synced_relations
from flows.settings import Settings
from kb.store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from editor.model import LanguageModel
    from editor.moments import Moments
    from editor.presets import MemitSettings
    from editor.requests import EditRequest
    from flows.neighbours import Neighbour
    from kb.relations import Relations

_SHOWN = (
    "exact",
    "whole",
    "efficacy",
    "heldback",
    "heldback_exact",
    "neighbours",
    "neighbours_same",
    "perplexity_rise",
)


def first_night(settings: Settings) -> tuple[list[EditRequest], Relations]:
    """Return what a first sync of the sample would edit."""
    LocalStore(settings.store_dir).load_night(1)
    nothing_held = settings.model_copy(update={"ledger_url": f"sqlite:///{settings.home / 'never-made.db'}"})
    relations = synced_relations(settings)
    plan = dry_run(nothing_held)
    return [editing.from_owed(row) for row in planning.requests(plan, relations)], relations


def trial_of(text: str) -> dict[str, Any]:
    """Read ``name=value,name=value``; values are Python literals, such as ``layers=(4,5,6)``."""
    call = ast.parse(f"dict({text})", mode="eval").body
    assert isinstance(call, ast.Call)
    return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}


def run(
    lm: LanguageModel,
    facts: Sequence[EditRequest],
    asked: tuple[Neighbour, ...],
    *,
    preset: MemitSettings,
    moments_of: Callable[[MemitSettings], Moments],
    trials: Sequence[str],
    written: Sequence[EditRequest] | None = None,
    passages: Sequence[str] = (),
) -> None:
    """Edit the base model once a trial and print what the exam says, one JSON line each.

    Args:
        lm: the base model.
        facts: what the exam asks.
        asked: neighbours that it asks too.
        preset: the settings that trials differ from.
        moments_of: gives second moments for settings.
        trials: see the module.
        written: what is written; None: the facts.
        passages: further texts whose perplexity is told.
    """
    exam, base = checking.set_exam(lm, facts, [], asked)
    unedited = recall.perplexity(lm, passages)
    for text, chosen in [(text, trial_of(text)) for text in trials]:
        share = chosen.pop("guard_share", None)
        settings = replace(preset, **chosen)
        moments = moments_of(settings)
        if share is not None:
            moments = replace(moments, key=replace(moments.key, guard_share=share))
        before = deltas.copies(lm, settings.layers)
        prefixed = settings.contexts == "prefixes"
        prefixes = (
            sample_prefixes(lm, settings.prefix_count, seed=settings.seed, top_k=PAPER_TOP_K)
            if prefixed
            else ()
        )
        start = Clock()
        outcome = memit.edit(
            lm,
            facts if written is None else written,
            settings=settings,
            moments=moments,
            prefixes=prefixes,
        )
        took = start.since()
        marks = checking.sit_exam(lm, exam, base)
        metrics = checking.measure((), marks, base).to_json()
        refined = [report.refined for report in outcome.reports]
        asked_prompts = [prompt.exact for result in marks.tonight for prompt in result.prompts]
        row = {
            "trial": text or "preset",
            "facts": len(facts),
            "cpu_s": round(took.cpu_s),
            "wall_s": round(took.s),
            "steps": round(sum(report.steps for report in outcome.reports) / len(refined), 1),
            "refined": round(sum(refined) / len(refined), 1),
            "shift": round(sum(report.shift for report in outcome.reports) / len(refined), 3),
            "all_prompts_exact": round(sum(asked_prompts) / len(asked_prompts), 4),
            **{name: round(float(metrics[name]), 4) for name in _SHOWN if metrics[name] is not None},
        }
        if passages:
            row["passages_rise"] = round(recall.perplexity(lm, passages) / unedited - 1, 4)
        print(json.dumps(row), flush=True)
        deltas.put_back(lm, before)


def main() -> None:
    """Print one JSON line a trial."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("trials", nargs="*", default=[""])
    trials = parser.parse_args().trials
    settings = Settings.read()
    facts, relations = first_night(settings)
    lm = models.load_base(settings)
    preset = recipe.editing_settings(settings, lm)
    moments_of = partial(recipe.load_moments, settings, lm, relations=relations)
    asked = neighbours.asked(
        relations, {editing.scope(fact.fact_id)[1] for fact in facts}, {fact.subject_id for fact in facts}
    )
    run(lm, facts, asked, preset=preset, moments_of=moments_of, trials=trials)


if __name__ == "__main__":
    main()
