"""The paper's evaluation: methods and numbers of edits on one data set and one model, resumable.

The main path: read the records, load the model, and for every experiment teach its batches, ask, and take
the facts out again, to the bit. What is finished is kept (`flows.experiments`), so that a run that was killed
goes on where it was. `flows.report` makes the pages.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import platform
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from editor import datasets, methods, metrics, recall
from editor.allocator import give_back_freed_memory
from editor.generation import References
from editor.method import Resources
from editor.presets import preset_for
from flows import checking, models, neighbours, recipe
from flows.asked import LEDGER, check, chosen, cut, selections, training
from flows.errors import EvaluationInputError
from flows.experiments import Experiment, ExperimentFolder
from flows.params import known_relations
from flows.progress import report, say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from editor.cases import Case
    from editor.datasets import Dataset
    from editor.method import Method
    from editor.metrics import Answer, Writing
    from editor.model import LanguageModel
    from editor.moments import Moments
    from editor.presets import MemitSettings
    from flows.asked import Asked
    from flows.settings import Settings

log = logging.getLogger(__name__)

PART = 50
"""Records asked together; what is asked is kept after each part."""

BASELINE = "none"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        about: data, model, versions, machine: all that the numbers depend on.
        results: one an experiment, as kept.
        folders: where each is kept.
        skipped: records that were left out.
    """

    about: dict[str, Any]
    results: tuple[dict[str, Any], ...]
    folders: tuple[ExperimentFolder, ...]
    skipped: tuple[str, ...]


@dataclass(slots=True)
class _Bench:
    """The model and all that is asked of it, besides the records."""

    lm: LanguageModel
    settings: MemitSettings
    resources: Resources
    passages: tuple[str, ...]
    references: References | None
    texts: int
    seed: int
    base: dict[str, float] = field(default_factory=dict)


def evaluate(settings: Settings, asked: Asked, out: Path) -> Evaluation:
    """Evaluate every method on every number of edits.

    Args:
        settings: model, device, second moments.
        asked: what to evaluate.
        out: folder that keeps the experiments.

    Returns:
        The results, those that an earlier run finished included.

    Raises:
        EvaluationInputError: numbers, methods or relations make no sense together.
        EditorError: data, model or method cannot be used.
    """
    check(asked)
    lm = models.load_base(settings)
    data = _data(settings, asked, lm)
    bench = _bench(settings, asked, lm, data, out)
    about = _about(asked, data, bench)
    results, folders = [], []
    for experiment in _experiments(settings, asked, data, bench):
        folder = ExperimentFolder(out, experiment)
        result = folder.result()
        if result is None:
            say(f"{experiment.method}, {len(experiment.cases)} edits" + _of(experiment))
            result = _run(bench, experiment, folder)
            folder.finish(result)
        results.append(result)
        folders.append(folder)
    return Evaluation(about, tuple(results), tuple(folders), tuple(str(one) for one in data.skipped))


def _data(settings: Settings, asked: Asked, lm: LanguageModel) -> Dataset:
    if asked.data == LEDGER:
        from flows.ledger_cases import from_ledger  # noqa: PLC0415 - opens a database only when asked

        return from_ledger(settings, lm)
    return datasets.load(asked.data, split=asked.split)


def _bench(settings: Settings, asked: Asked, lm: LanguageModel, data: Dataset, out: Path) -> _Bench:
    preset = recipe.editing_settings(settings, lm) if asked.calibrated else preset_for(lm)
    memit = replace(preset, seed=asked.seed)
    relations = known_relations(settings)
    made: list[Moments] = []

    def moments() -> Moments:
        if not made:
            made.append(recipe.load_moments(settings, lm, memit, relations, report))
        return made[0]

    passages = (
        checking.fluency_texts(asked.passages, "--passages")
        if asked.passages
        else checking.fluency_texts(settings.heldout)
    )
    references = References.load(asked.references) if asked.references else None
    resources = Resources(memit, moments, training(asked, data), asked.seed, out / "learnt")
    return _Bench(lm, memit, resources, passages, references, asked.texts, asked.seed)


def _experiments(settings: Settings, asked: Asked, data: Dataset, bench: _Bench) -> list[Experiment]:
    """The smallest first, so that something is to be seen early."""
    corpus = recipe.corpus(settings)
    guarded = neighbours.guarded(known_relations(settings))
    basis = {
        "data": data.digest,
        "model": bench.lm.digest,
        "device": bench.lm.device.type,
        "settings": bench.settings.to_json(),
        "moments": [settings.moment_tokens, corpus and _digest(corpus)],
        "guards": _digest([f"{template}: {subject}" for template, subject in guarded]),
        "passages": _digest(bench.passages),
        "references": asked.references and _digest([asked.references.read_text(encoding="utf-8")]),
        "texts": asked.texts,
    }
    names = dict.fromkeys((BASELINE, *asked.methods))
    learnt_from = _digest([case.case_id for case in bench.resources.training])
    found = []
    for count in sorted(set(asked.edits)):
        for relations in selections(asked):
            cases = chosen(asked, data, count, relations)
            for name in names:
                parts = cut(cases, 1 if name == BASELINE else asked.batches)
                own = {**basis, "training": learnt_from} if name == "mend" else basis
                found.append(Experiment(name, relations, parts, asked.seed, own))
    return found


def _run(bench: _Bench, experiment: Experiment, folder: ExperimentFolder) -> dict[str, Any]:
    """Teach batch after batch, ask after each, and undo."""
    method = methods.make(experiment.method, bench.lm, bench.resources)
    taught = folder.taught()
    done, seconds = 0, 0.0
    sequence: list[dict[str, Any]] = []
    method.prepare(progress=report)
    try:
        if taught is not None:
            done, weights, state, seconds = taught
            method.resume(weights, state)
        for number, cases in enumerate(experiment.batches, start=1):
            if number > done:
                seconds += _teach(method, cases)
                folder.keep(number, method.changed(), method.state(), seconds)
            if number >= done:
                sequence.append(_ask(bench, method, experiment, folder, number))
            else:
                sequence.append(folder.read_json(_after(number)) or {})
        answers = [one for part in _parts(experiment.cases) for one in _kept(folder, experiment, part)]
        writings = _write(bench, method, experiment, folder)
    finally:
        method.undo()
    return _result(experiment, answers, writings, sequence, seconds)


def _teach(method: Method, cases: Sequence[Case]) -> float:
    # Processor time, not the clock: it holds on a machine that others use too.
    start = time.process_time()
    method.apply([case.request for case in cases], progress=report)
    seconds = time.process_time() - start
    give_back_freed_memory()
    return seconds


def _after(number: int) -> str:
    return f"after-{number:04d}.json"


def _parts(cases: Sequence[Case]) -> list[int]:
    return list(range(-(-len(cases) // PART)))


def _kept(folder: ExperimentFolder, experiment: Experiment, part: int) -> list[Answer]:
    return folder.answers(len(experiment.batches), part) or []


def _ask(
    bench: _Bench, method: Method, experiment: Experiment, folder: ExperimentFolder, number: int
) -> dict[str, Any]:
    """Ask after a batch: the first batch and this one; after the last, everything."""
    kept: dict[str, Any] | None = folder.read_json(_after(number))
    if kept is not None:
        return kept
    last = number == len(experiment.batches)
    cohorts = {case.case_id: n for n, batch in enumerate(experiment.batches, start=1) for case in batch}
    wanted = {1, number}
    cases = [case for case in experiment.cases if last or cohorts[case.case_id] in wanted]
    answers: list[Answer] = []
    for part in _parts(cases):
        found = folder.answers(number, part)
        if found is None:
            found = metrics.ask(bench.lm, cases[part * PART : (part + 1) * PART], shown=method.shown)
            folder.keep_answers(number, part, found, cohorts)
        answers += found
        report("recall", min(len(cases), (part + 1) * PART), len(cases))
    entry = {
        "batch": number,
        "edits": sum(len(batch) for batch in experiment.batches[:number]),
        "first": metrics.summary([one for one in answers if cohorts[one.case_id] == 1]),
        "latest": metrics.summary([one for one in answers if cohorts[one.case_id] == number]),
        "perplexity": recall.perplexity(bench.lm, bench.passages),
        "perplexity_base": _base_perplexity(bench, experiment, folder),
        "capability": metrics.capability(bench.lm) if last else None,
    }
    folder.write_json(_after(number), entry)
    return entry


def _base_perplexity(bench: _Bench, experiment: Experiment, folder: ExperimentFolder) -> float:
    """The unedited model's, measured once: the unedited experiment comes first."""
    if experiment.method == BASELINE:
        bench.base["perplexity"] = recall.perplexity(bench.lm, bench.passages)
    if "perplexity" not in bench.base:
        basis = {name: value for name, value in experiment.basis.items() if name != "training"}
        unedited = replace(experiment, method=BASELINE, batches=(experiment.cases,), basis=basis)
        kept = ExperimentFolder(folder.path.parent.parent, unedited).result()
        if kept is None:
            raise EvaluationInputError(
                "The unedited model was not measured: remove the folder and start anew."
            )
        bench.base["perplexity"] = kept["metrics"]["perplexity"]
    return bench.base["perplexity"]


def _write(bench: _Bench, method: Method, experiment: Experiment, folder: ExperimentFolder) -> list[Writing]:
    """Let the model write about the first records."""
    cases = experiment.cases[: bench.texts]
    writings: list[Writing] = []
    for part in _parts(cases):
        found = folder.writings(part)
        if found is None:
            found = metrics.write(
                bench.lm,
                cases[part * PART : (part + 1) * PART],
                shown=method.shown,
                references=bench.references,
                seed=bench.seed + part,
                progress=report,
            )
            folder.keep_writings(part, found)
        writings += found
    return writings


def _result(
    experiment: Experiment,
    answers: Sequence[Answer],
    writings: Sequence[Writing],
    sequence: Sequence[dict[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    last = sequence[-1]
    found: dict[str, float | None] = {
        **metrics.summary(answers, writings),
        "perplexity": last["perplexity"],
        "perplexity_rise": last["perplexity"] / last["perplexity_base"] - 1.0,
        "capability": last["capability"],
    }
    return {
        **experiment.label,
        "key": experiment.key,
        "title": methods.METHODS[experiment.method].title,
        "cpu_s_per_edit": seconds / len(experiment.cases),
        "metrics": found,
        "by_relation": dict(metrics.by_relation(answers)),
        "sequence": list(sequence),
    }


def _about(asked: Asked, data: Dataset, bench: _Bench) -> dict[str, Any]:
    lm = bench.lm
    return {
        "data": data.name,
        "data_digest": data.digest,
        "records": len(data.cases),
        "skipped": len(data.skipped),
        "model": lm.name,
        "model_digest": lm.digest,
        "device": str(lm.device),
        "settings": bench.settings.to_json(),
        "seed": asked.seed,
        "shuffle": asked.shuffle,
        "edits": list(asked.edits),
        "batches": asked.batches,
        "methods": list(dict.fromkeys((BASELINE, *asked.methods))),
        "relations": list(asked.relations),
        "mix": asked.mix,
        "passages": str(asked.passages or "shipped"),
        "references": None if asked.references is None else str(asked.references),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("factsync", "torch", "transformers", "peft")
            if _installed(name)
        },
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _of(experiment: Experiment) -> str:
    return f" of {', '.join(experiment.relations)}" if experiment.relations else ""
