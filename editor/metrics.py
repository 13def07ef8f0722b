"""What editing papers measure, as the paper's own evaluation defines it, and what they leave out.

p(text | prompt) is length-normalised (`editor.recall`). Shares are averaged within a record, then over records.

| name | meaning |
|---|---|
| efficacy, paraphrase, clean | share of prompts with p(new) > p(true) (ES, PS); without a rival, of target tokens that are argmax under teacher forcing, as in zsRE |
| neighbourhood | share of other subjects' prompts with p(true) > p(new) (NS) |
| portability | the same share for what follows from a fact in a second hop |
| ..._magnitude | mean difference of the two probabilities |
| ..._accuracy | share of target tokens that are argmax under teacher forcing |
| ..._exact | share of prompts where all of them are: the reference's accuracy on CounterFact |
| ..._greedy | share of prompts after which free greedy decoding begins with the answer's words |
| score | harmonic mean of efficacy, paraphrase and neighbourhood (S) |
| entropy, reference | GE and RS, `editor.generation` |
| perplexity, capability | on held-out text; share of forty everyday questions answered right |
"""  # noqa: E501 - a table

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from statistics import fmean
from typing import TYPE_CHECKING

from editor import generation, recall
from editor.cases import Question
from editor.requests import render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from editor.cases import Case
    from editor.generation import References
    from editor.model import LanguageModel
    from editor.progress import Progress


PROBES = ("efficacy", "paraphrase", "clean", "neighbourhood", "portability")
MOST_OPENINGS = 3
_SAID = ("efficacy", "paraphrase", "clean", "portability")
_LONGEST_ANSWER = 32


@dataclass(frozen=True, slots=True)
class Answer:
    """How one prompt came out.

    Attributes:
        case_id: the record.
        relation: its relation.
        probe: what the prompt tests, one of `PROBES`.
        prompt: as shown to the model.
        answer: what should follow.
        rival: what must not be likelier.
        p_answer: probability of the answer.
        p_rival: of the rival.
        tokens: of the answer.
        matched: tokens of the answer that are argmax under teacher forcing.
        said: what greedy decoding says; None where it was not asked.
    """

    case_id: str
    relation: str
    probe: str
    prompt: str
    answer: str
    rival: str | None
    p_answer: float
    p_rival: float | None
    tokens: int
    matched: int
    said: str | None

    @property
    def success(self) -> float:
        """1 or 0 where there is a rival; else the share of matched tokens."""
        return self.accuracy if self.p_rival is None else float(self.p_answer > self.p_rival)

    @property
    def magnitude(self) -> float | None:
        """p(answer) - p(rival)."""
        return None if self.p_rival is None else self.p_answer - self.p_rival

    @property
    def accuracy(self) -> float:
        """Share of matched tokens."""
        return self.matched / self.tokens

    @property
    def exact(self) -> float:
        """1 if every token matched."""
        return float(self.matched == self.tokens)

    @property
    def greedy(self) -> float | None:
        """1 if free greedy decoding begins with the answer's words."""
        return None if self.said is None else float(begins_with(self.said, self.answer))


@dataclass(frozen=True, slots=True)
class Writing:
    """What a model wrote about one record's subject.

    Attributes:
        case_id: the record.
        relation: its relation.
        texts: sampled texts.
        entropy: GE.
        reference: RS; None without reference texts.
    """

    case_id: str
    relation: str
    texts: tuple[str, ...]
    entropy: float
    reference: float | None


def begins_with(text: str, answer: str) -> bool:
    """Whether a text begins with an answer, word for word, whatever the case of letters."""
    wanted = [word.casefold() for word in generation.words(answer)]
    return [word.casefold() for word in generation.words(text)[: len(wanted)]] == wanted


def ask(
    lm: LanguageModel,
    cases: Sequence[Case],
    *,
    shown: Callable[[str], str] = str,
    probes: Iterable[str] = PROBES,
    greedy: bool = True,
) -> list[Answer]:
    """Ask a model every prompt of some records, in batches.

    Args:
        lm: the model as it is.
        cases: the records.
        shown: turns a prompt into what is shown to the model; retrieval puts facts in front.
        probes: what to ask.
        greedy: also decode freely, where that is measured.

    Returns:
        One answer a prompt, record by record.
    """
    wanted = set(probes)
    asked = [
        (case, probe, shown(question.prompt), question)
        for case in cases
        for probe, question in questions(case)
        if probe in wanted
    ]
    pairs: list[tuple[str, str]] = []
    for _, _, prompt, question in asked:
        pairs.append((prompt, question.answer))
        if question.rival is not None:
            pairs.append((prompt, question.rival))
    rated = iter(recall.likelihoods(lm, pairs))
    found = [
        (next(rated), next(rated) if question.rival is not None else None) for _, _, _, question in asked
    ]
    spoken = [i for i, (_, probe, _, _) in enumerate(asked) if greedy and probe in _SAID]
    longest = max((found[i][0].tokens for i in spoken), default=0)
    texts = recall.completions(lm, [asked[i][2] for i in spoken], tokens=min(_LONGEST_ANSWER, longest + 1))
    said = dict(zip(spoken, texts, strict=True))
    return [
        Answer(
            case.case_id,
            case.relation,
            probe,
            prompt,
            question.answer,
            question.rival,
            right.probability,
            None if wrong is None else wrong.probability,
            right.tokens,
            right.matched,
            said.get(number),
        )
        for number, ((case, probe, prompt, question), (right, wrong)) in enumerate(
            zip(asked, found, strict=True)
        )
    ]


def questions(case: Case) -> list[tuple[str, Question]]:
    """Return all prompts of a record with what each tests."""
    request = case.request
    edited = [
        Question(render(template, request.subject)[0], request.target, request.old_target)
        for template in request.prompts
    ]
    groups = (edited, case.paraphrases, case.clean_paraphrases, case.neighbourhood, case.portability)
    return [(probe, one) for probe, group in zip(PROBES, groups, strict=True) for one in group]


def write(
    lm: LanguageModel,
    cases: Sequence[Case],
    *,
    shown: Callable[[str], str] = str,
    references: References | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Writing]:
    """Let a model write about the subjects of some records.

    Args:
        lm: the model as it is.
        cases: the records.
        shown: turns a prompt into what is shown to the model.
        references: texts for RS.
        seed: of the sampling.
        progress: called with (stage, done, total).

    Returns:
        One piece a record that has openings.
    """
    openings = [(case, opening) for case in cases for opening in case.generation[:MOST_OPENINGS]]
    texts = generation.sample_texts(
        lm, [shown(opening) for _, opening in openings], seed=seed, progress=progress
    )
    written: dict[str, list[str]] = {}
    for (case, _), text in zip(openings, texts, strict=True):
        written.setdefault(case.case_id, []).append(text)
    pieces = []
    for case in cases:
        own = tuple(written.get(case.case_id, ()))
        if own:
            sources = references.texts_for(case) if references else ()
            likeness = references.similarity(own, sources) if references and sources else None
            entropy = fmean(generation.ngram_entropy(text) for text in own)
            pieces.append(Writing(case.case_id, case.relation, own, entropy, likeness))
    return pieces


def capability(lm: LanguageModel) -> float:
    """Return the share of everyday questions whose right answer is likelier than every wrong one."""
    text = resources.files("editor").joinpath("capability.toml").read_text(encoding="utf-8")
    items = tomllib.loads(text)["item"]
    pairs = [(item["prompt"], option) for item in items for option in (item["answer"], *item["wrong"])]
    rated = iter(recall.likelihoods(lm, pairs))
    right = 0
    for item in items:
        best, *others = (next(rated).probability for _ in (item["answer"], *item["wrong"]))
        right += best > max(others)
    return right / len(items)


def summary(answers: Sequence[Answer], writings: Sequence[Writing] = ()) -> dict[str, float | None]:
    """Condense answers: averaged within a record, then over records.

    Args:
        answers: of any number of records.
        writings: likewise.

    Returns:
        The metrics by name, all there; None where nothing was measured.
    """
    result: dict[str, float | None] = {}
    for probe in PROBES:
        own = [answer for answer in answers if answer.probe == probe]
        result[probe] = _mean(own, "success")
        for part in ("magnitude", "accuracy", "exact", "greedy"):
            result[f"{probe}_{part}"] = _mean(own, part)
    result["score"] = harmonic_mean([result[name] for name in ("efficacy", "paraphrase", "neighbourhood")])
    result["entropy"] = _average(piece.entropy for piece in writings)
    result["reference"] = _average(piece.reference for piece in writings)
    return result


def by_relation(answers: Sequence[Answer]) -> Mapping[str, dict[str, float | None]]:
    """Return a summary of each relation, the most asked first."""
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.relation, []).append(answer)
    return {
        relation: summary(own)
        for relation, own in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    }


def harmonic_mean(values: Sequence[float | None]) -> float | None:
    """Return the harmonic mean; 0 if one is 0, None if one was not measured."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    return len(known) / sum(1 / value for value in known) if all(value > 0 for value in known) else 0.0


def _mean(answers: Sequence[Answer], part: str) -> float | None:
    groups: dict[str, list[float]] = {}
    for answer in answers:
        value = getattr(answer, part)
        if value is not None:
            groups.setdefault(answer.case_id, []).append(value)
    return _average(fmean(values) for values in groups.values())


def _average(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
