"""Measure a candidate: does it say tonight's facts, hold the older ones, and leave all else alone?"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from editor import recall
from editor.requests import EditRequest, render
from flows.editing import fact_id, from_held, scope, with_rivals
from flows.gates import Metrics
from flows.passages import read_passages
from storage.records.checkpoints import CheckRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from editor.model import LanguageModel
    from editor.progress import Progress
    from editor.recall import PromptRecall, RecallResult
    from flows.neighbours import Neighbour
    from storage.records.facts import HeldRow


NEIGHBOUR_TOKENS = 5
INTRUDERS = 5


@dataclass(frozen=True, slots=True)
class Exam:
    """All that a night asks a model, before and after.

    Attributes:
        tonight: tonight's facts, each with a rival to beat.
        older: a sample of other live facts, likewise.
        neighbours: prompts about subjects that no edit is about, by relation.
        intruders: some of tonight's objects by relation: what must not spread to the neighbours.
        fluency: held-out text.
        retracted: facts that are taken out tonight: the target is what should go, the rival what the base
            model says in its place.
        beliefs: the base model's completion of each fact's first prompt, by fact id.
    """

    tonight: tuple[EditRequest, ...]
    older: tuple[EditRequest, ...]
    neighbours: tuple[Neighbour, ...]
    intruders: Mapping[str, tuple[str, ...]]
    fluency: tuple[str, ...]
    retracted: tuple[EditRequest, ...] = ()
    beliefs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BaseAnswers:
    """What the unedited model says."""

    neighbours: tuple[str, ...]
    perplexity: float


@dataclass(frozen=True, slots=True)
class NeighbourMark:
    """What became of one neighbour.

    Attributes:
        prompt: the prompt.
        before: what the base model answers.
        now: what the model answers.
        p_before: probability of the base model's answer, now.
        p_intruder: of the likeliest object edited tonight in the relation; None if there is none.
    """

    prompt: str
    before: str
    now: str
    p_before: float
    p_intruder: float | None

    @property
    def kept(self) -> bool:
        """Whether it prefers its own answer to every intruder."""
        return self.p_intruder is None or self.p_before > self.p_intruder

    @property
    def same(self) -> bool:
        """Whether its answer begins with the word it began with."""
        return self.before.split(" ")[0] == self.now.split(" ")[0]


@dataclass(frozen=True, slots=True)
class Marks:
    """What a model scored in an exam."""

    tonight: tuple[RecallResult, ...]
    older: tuple[RecallResult, ...]
    neighbours: tuple[NeighbourMark, ...]
    perplexity: float
    retracted: tuple[RecallResult, ...] = ()


def sample_older(held: Iterable[HeldRow], asked: Iterable[str], size: int, seed: int) -> list[EditRequest]:
    """Draw older live facts to ask about: all of tonight's subjects, then a seeded sample."""
    skip = set(asked)
    touched = {scope(fact)[0] for fact in skip}
    rows = [row for row in held if fact_id(row.subject, row.property, row.slot) not in skip]
    near = [row for row in rows if row.subject in touched]
    far = [row for row in rows if row.subject not in touched]
    # A seeded sample, so that running a night again asks the same questions.
    chosen = random.Random(seed).sample(far, min(size, len(far)))  # noqa: S311 - no secret
    return [from_held(row) for row in (*near, *chosen)]


_SHIPPED = Path(__file__).with_name("heldout.txt")


def fluency_texts(path: Path | None = None, name: str = "FACTSYNC_HELDOUT") -> tuple[str, ...]:
    """The text that perplexity is asked on, a passage a line: of a file, or what ships with the project.

    Args:
        path: the file; None for what ships.
        name: what names it.

    Raises:
        SettingsError: the file is no UTF-8 text, or holds no passage of two words.
    """
    return tuple(read_passages(name, path or _SHIPPED, words=2))


def set_exam(
    base: LanguageModel,
    tonight: Sequence[EditRequest],
    older: Sequence[EditRequest],
    neighbours: tuple[Neighbour, ...],
    retracted: Sequence[EditRequest] = (),
    *,
    heldout: Path | None = None,
) -> tuple[Exam, BaseAnswers]:
    """Ask the unedited model first.

    Its answers are the rivals of facts that replace nothing, and what neighbours must still say.
    """
    facts = [*tonight, *older, *retracted]
    firsts = [render(fact.prompts[0], fact.subject)[0] for fact in facts]
    said = dict(zip((fact.fact_id for fact in facts), recall.completions(base, firsts), strict=True))
    fluency = fluency_texts(heldout)
    intruders: dict[str, tuple[str, ...]] = {}
    for fact in tonight:
        prop = scope(fact.fact_id)[1]
        intruders[prop] = (*intruders.get(prop, ()), fact.target)[:INTRUDERS]
    exam = Exam(
        with_rivals(tonight, said),
        with_rivals(older, said),
        neighbours,
        intruders,
        fluency,
        with_rivals(retracted, said),
        said,
    )
    answers = recall.completions(base, [one.prompt for one in neighbours], tokens=NEIGHBOUR_TOKENS)
    return exam, BaseAnswers(tuple(answers), recall.perplexity(base, fluency))


def ask_before(lm: LanguageModel, exam: Exam) -> tuple[RecallResult, ...]:
    """What the model says of tonight's facts before the edit, on each fact's first prompt.

    Those that are taken out come after those that are written.
    """
    facts = (*exam.tonight, *exam.retracted)
    firsts = [replace(fact, prompts=fact.prompts[:1], heldback=()) for fact in facts]
    return tuple(recall.check(lm, firsts, greedy=False))


def sit_exam(lm: LanguageModel, exam: Exam, base: BaseAnswers, progress: Progress | None = None) -> Marks:
    """Ask a model everything."""
    results = iter(recall.check(lm, [*exam.tonight, *exam.older, *exam.retracted], progress=progress))
    return Marks(
        tuple(islice(results, len(exam.tonight))),
        tuple(islice(results, len(exam.older))),
        _neighbour_marks(lm, exam, base),
        recall.perplexity(lm, exam.fluency),
        tuple(results),
    )


def _neighbour_marks(lm: LanguageModel, exam: Exam, base: BaseAnswers) -> tuple[NeighbourMark, ...]:
    now = recall.completions(lm, [one.prompt for one in exam.neighbours], tokens=NEIGHBOUR_TOKENS)
    options = [
        (answer or ".", *exam.intruders.get(one.property, ()))
        for one, answer in zip(exam.neighbours, base.neighbours, strict=True)
    ]
    pairs = [
        (one.prompt, text) for one, texts in zip(exam.neighbours, options, strict=True) for text in texts
    ]
    rated = iter(recall.likelihoods(lm, pairs))
    marks = []
    for one, texts, before, after in zip(exam.neighbours, options, base.neighbours, now, strict=True):
        own, *others = (next(rated).probability for _ in texts)
        marks.append(NeighbourMark(one.prompt, before, after, own, max(others, default=None)))
    return tuple(marks)


def measure(
    before: Sequence[RecallResult], marks: Marks, base: BaseAnswers, *, norm: float | None = None
) -> Metrics:
    """Condense marks to the numbers that gates read."""
    before = before[: len(marks.tonight)]
    return Metrics(
        efficacy=_share(p.success for r in marks.tonight for p in r.prompts),
        exact=_share(r.exact for r in marks.tonight),
        heldback=_share(p.success for r in marks.tonight for p in r.heldback),
        heldback_exact=_share(p.exact for r in marks.tonight for p in r.heldback),
        efficacy_before=_share(p.success for r in before for p in r.prompts),
        exact_before=_share(r.exact for r in before),
        retention=_share(r.success for r in marks.older),
        retention_exact=_share(r.exact for r in marks.older),
        neighbours=_share(one.kept for one in marks.neighbours),
        neighbours_same=_share(one.same for one in marks.neighbours),
        perplexity=marks.perplexity,
        perplexity_base=base.perplexity,
        norm=norm,
        retracted=_share(gone(result) for result in marks.retracted),
        whole=_share(r.prompts[0].whole for r in marks.tonight),
    )


def gone(result: RecallResult | PromptRecall) -> bool:
    """Whether a retracted object is no longer preferred to what the base model says in its place."""
    return result.p_old is None or not result.success


def still_said(before: Sequence[RecallResult], now: Sequence[RecallResult]) -> float | None:
    """Of the facts that a model preferred before, the share that it prefers now: what a rebuild keeps."""
    return _share(after.success for then, after in zip(before, now, strict=True) if then.success)


def check_rows(exam: Exam, marks: Marks) -> list[CheckRow]:
    """Every measured answer, for the ledger."""
    rows: list[CheckRow] = []
    asked: Mapping[str, EditRequest] = {fact.fact_id: fact for fact in (*exam.tonight, *exam.older)}
    for probe, results in (("efficacy", marks.tonight), ("retention", marks.older)):
        for result in results:
            target = asked[result.fact_id].target
            rows.extend(_rows(probe, result, target, result.prompts, with_greedy=True))
            if probe == "efficacy":
                rows.extend(_rows("paraphrase", result, target, result.heldback, with_greedy=False))
    for result in marks.retracted:
        rows.extend(_retraction_rows(result, exam.beliefs[result.fact_id]))
    rows.extend(
        CheckRow(
            "neighbourhood",
            one.kept,
            index=number,
            prompt=one.prompt,
            expected=one.before,
            got=one.now,
            p_new=one.p_before,
            p_old=one.p_intruder,
        )
        for number, one in enumerate(marks.neighbours)
    )
    return rows


def _rows(
    probe: str,
    result: RecallResult,
    target: str,
    prompts: Sequence[recall.PromptRecall],
    *,
    with_greedy: bool,
) -> list[CheckRow]:
    subject, prop, slot = scope(result.fact_id)
    return [
        CheckRow(
            probe,
            asked.success,
            subject,
            prop,
            slot,
            number,
            asked.prompt,
            target,
            result.greedy if with_greedy and number == 0 else None,
            asked.p_new,
            asked.p_old,
            asked.rank_old,
        )
        for number, asked in enumerate(prompts)
    ]


def _retraction_rows(result: RecallResult, belief: str) -> list[CheckRow]:
    """What is said where a fact was taken out: expected is the base model's belief, old is what should go."""
    subject, prop, slot = scope(result.fact_id)
    return [
        CheckRow(
            "retraction",
            gone(asked),
            subject,
            prop,
            slot,
            number,
            asked.prompt,
            belief if number == 0 else "",
            result.greedy if number == 0 else None,
            asked.p_old,
            asked.p_new,
            asked.rank_new,
        )
        for number, asked in enumerate(result.prompts)
    ]


def _share(values: Iterable[bool]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None
