"""The model of an experiment of `benchmarks.nights`, and what is asked of it after every batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from benchmarks.clock import Clock
from editor import methods, metrics, recall
from editor.allocator import give_back_freed_memory
from editor.method import Resources
from editor.model import LanguageModel
from editor.moments import Moments
from editor.presets import preset_for
from flows import checking, neighbours
from kb.relations import Relations

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from benchmarks.night_log import Log, Row
    from editor.cases import Case
    from editor.method import Method
    from editor.presets import MemitSettings
    from editor.requests import EditRequest


LAST = 100
"""How many passages at a corpus' end are read for perplexity: second moments are measured on others."""
_EVERY = 5


def passages(path: Path) -> list[str]:
    """Return the passages of a corpus, one a line."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


@dataclass
class Bench:
    """The model, and all that is asked of it.

    Attributes:
        source: folder of the model.
        out: where everything is kept.
        data: folder of development data.
        tokens: for the second moments at most; None: as many as they need.
        settings: how to edit; None takes the model's preset.
    """

    source: str
    out: Path
    data: Path
    tokens: int | None = None
    settings: MemitSettings | None = None
    fluency: tuple[str, ...] = field(default_factory=checking.fluency_texts)

    def base(self) -> LanguageModel:
        """Load the unedited model."""
        return LanguageModel.load(self.source)

    @cached_property
    def moments(self) -> Moments:
        """Second moments from the development passages, with the product's guards; computed once."""
        path = self.out / "moments.safetensors"
        if path.exists():
            return Moments.load(path)
        lm = self.base()
        found = Moments.compute(
            lm,
            self.corpus[:-LAST] or None,
            self.how(lm).layers,
            tokens=self.tokens,
            guards=neighbours.guarded(Relations.load()),
        )
        found.save(path)
        return found

    @cached_property
    def corpus(self) -> list[str]:
        """The development passages; none where they are missing."""
        path = self.data / "wikipedia_passages_dev.txt"
        return passages(path) if path.exists() else []

    def how(self, lm: LanguageModel) -> MemitSettings:
        """How to edit."""
        return self.settings or preset_for(lm)

    def method(self, name: str, lm: LanguageModel) -> Method:
        """Make a method for a model."""
        return methods.make(name, lm, Resources(settings=self.how(lm), moments=lambda: self.moments))


def started(bench: Bench, name: str, log: Log) -> tuple[LanguageModel, Method, dict[str, Tensor]]:
    """Return the model, the method, and the unedited matrices, as the log's last row left the first two."""
    lm = bench.base()
    method = bench.method(name, lm)
    originals = method.changed()
    log.resume(method)
    return lm, method, originals


def distinct(cases: Sequence[Case]) -> list[Case]:
    """Return the first record of each subject: a second one would replace the first."""
    found: dict[str, Case] = {}
    for case in cases:
        found.setdefault(case.request.subject.casefold(), case)
    return list(found.values())


def timed(work: Callable[[], object]) -> float:
    """Return the CPU seconds of this process over all its threads: they hold on a shared machine."""
    start = Clock()
    work()
    seconds = start.since().cpu_s
    give_back_freed_memory()
    return seconds


def asked_of(lm: LanguageModel, method: Method, cases: Sequence[Case], probes: Sequence[str]) -> Row:
    """Ask records of a data set: the share of each probe that is preferred, and that is exact."""
    answers = metrics.ask(lm, cases, shown=method.shown, probes=probes, greedy=False)
    found = metrics.summary(answers)
    names = [name for probe in probes for name in (probe, f"{probe}_exact")]
    return {name: found[name] for name in names if found[name] is not None}


def recall_of(lm: LanguageModel, facts: Sequence[EditRequest]) -> Row:
    """Ask facts: shares of them that are preferred and exact, on edit prompts and in held-back phrasings."""
    results = recall.check(lm, facts, greedy=False)
    held = [one for result in results for one in result.heldback]
    return {
        "success": _share([result.success for result in results]),
        "exact": _share([result.exact for result in results]),
        "heldback": _share([one.success for one in held]),
        "heldback_exact": _share([one.exact for one in held]),
    }


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else float("nan")


def wear(
    bench: Bench,
    lm: LanguageModel,
    method: Method,
    originals: dict[str, Tensor],
    *,
    after: int | None = None,
) -> Row:
    """Measure what the edits cost text, and how far the edited weights are from the unedited ones at most.

    Args:
        bench: the model.
        lm: it as edited.
        method: what edited it.
        originals: its matrices before.
        after: so many nights; passages, which take half as long as a night, are read after every fifth and
            where none is given.
    """
    now = method.changed()
    norms = [float((now[name] - weight).norm() / weight.norm()) for name, weight in originals.items()]
    text = fluency(bench, lm, passages=after is None or after == 1 or after % _EVERY == 0)
    return {**text, "norm": max(norms, default=0.0)}


def fluency(bench: Bench, lm: LanguageModel, *, passages: bool = True) -> Row:
    """Measure perplexity on the product's dozen of held-out texts, and on the corpus' last passages."""
    found: Row = {"perplexity": recall.perplexity(lm, bench.fluency)}
    if passages and bench.corpus:
        found["passages"] = recall.perplexity(lm, bench.corpus[-LAST:])
    return found
