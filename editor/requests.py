"""What to edit, and what that means in tokens.

The unit of an edit is the subject: every key of the prompts "{} ..." depends only on the text up to the
subject's last token, so facts of one subject share keys and are solved together (MEMIT-Merge, arXiv
2502.07322).
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from editor.errors import (
    EmptyTargetError,
    PromptTooLongError,
    SubjectConflictError,
    SubjectNotInPromptError,
    TargetTooLongError,
)
from editor.wordings import PLACE, wordings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from editor.model import LanguageModel


@dataclass(frozen=True, slots=True, kw_only=True)
class EditRequest:
    """One fact to write.

    Attributes:
        fact_id: the caller's name for the fact.
        subject_id: the caller's name for the subject; facts of one subject share one state.
        subject: the subject's text.
        prompts: templates with one ``{}`` for the subject, each ending right before the object.
        target: the object's text.
        heldback: templates that are measured and never trained on.
        old_target: what the model said before, to compare with; None if unknown.
    """

    fact_id: str
    subject_id: str
    subject: str
    prompts: tuple[str, ...]
    target: str
    heldback: tuple[str, ...] = ()
    old_target: str | None = None

    def __post_init__(self) -> None:
        """Name the subject as prompts do, without white space around it."""
        object.__setattr__(self, "subject", self.subject.strip())


@dataclass(frozen=True, slots=True)
class Row:
    """One teacher-forced sequence: prompt and target; its last token only where the word is to end there.

    Attributes:
        ids: token ids.
        lookup: index of the subject's last token.
        first: index of the token from which the first target token is predicted.
        labels: target token ids, predicted from `first`, `first` + 1, ...
        fact: index of the fact within its unit; -1 for a row that only guards (KL).
        column: index of the key column that this row's text up to the subject makes; -1 for a row that only
            guards.
        guard: what the model predicts right after the subject must not drift in this row (KL).
        end: index of the target's last token, after which the word is to end; None if nothing is asked there.
    """

    ids: tuple[int, ...]
    lookup: int
    first: int
    labels: tuple[int, ...]
    fact: int
    column: int
    guard: bool = False
    end: int | None = None

    @property
    def asked(self) -> tuple[int, ...]:
        """The prompt, without the target."""
        return self.ids[: self.first + 1]


@dataclass(frozen=True, slots=True)
class Unit:
    """All facts of one subject, tokenised.

    Attributes:
        subject_id: the caller's name for the subject.
        fact_ids: the caller's names for the facts.
        rows: the sequences of the target-state loss.
        columns: distinct texts up to the subject's last token, in tokens; one key each.
        requests: the facts.
    """

    subject_id: str
    fact_ids: tuple[str, ...]
    rows: tuple[Row, ...]
    columns: tuple[tuple[int, ...], ...]
    requests: tuple[EditRequest, ...] = field(repr=False, default=())

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max((len(row.ids) for row in self.rows), default=0)

    @property
    def floor(self) -> float:
        """What the mean loss of the targets cannot fall under, in nats a token.

        After one prompt the probabilities of k objects (members of one club, owners of one firm) make one at
        most, so that -log p of each is ln k or more in the mean: a loss is low by what it is above this.
        """
        told = [row for row in self.rows if row.labels]
        alike: dict[tuple[int, ...], set[tuple[int, ...]]] = defaultdict(set)
        for row in told:
            alike[row.asked].add(row.labels)
        return sum(math.log(len(alike[row.asked])) / len(row.labels) for row in told) / max(len(told), 1)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt in tokens.

    Attributes:
        ids: token ids, special tokens in front included.
        lookup: index of the subject's last token.
    """

    ids: tuple[int, ...]
    lookup: int


def render(template: str, subject: str) -> tuple[str, int]:
    """Put a subject into a template.

    Args:
        template: text with exactly one ``{}``.
        subject: the subject's text.

    Returns:
        The prompt without white space at its end, and the index just after the subject's last character.

    Raises:
        SubjectNotInPromptError: not exactly one place for the subject, or no subject to put there.
    """
    if template.count(PLACE) != 1 or not subject.strip():
        raise SubjectNotInPromptError(
            f"The template {template!r} (subject {subject!r}) needs exactly one {PLACE} and a subject "
            "that is not "
            "empty: correct the template of this relation.",
            template=template,
            subject=subject,
        )
    before, after = template.split(PLACE)
    subject = subject.strip()
    return (before + subject + after).rstrip(), len(before) + len(subject)


def encode(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:  # noqa: ANN401 - many classes
    """Tokenise with the family's leading special tokens and without its trailing ones.

    Args:
        tokenizer: a fast tokenizer.
        text: the text.

    Returns:
        Token ids, and the (start, stop) characters of each token; (0, 0) for special tokens.
    """
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    ids, offsets = list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]
    special = list(encoded["special_tokens_mask"])
    while special and special[-1] and len(ids) > 1:
        ids.pop(), offsets.pop(), special.pop()
    return ids, offsets


def encode_prompt(tokenizer: Any, template: str, subject: str) -> Prompt:  # noqa: ANN401 - many classes
    """Tokenise a prompt and find the subject's last token by its characters.

    A subject may end inside a token, occur twice, or end the prompt: the last token that covers its last
        character in the place of the template counts.

    Args:
        tokenizer: a fast tokenizer.
        template: text with one ``{}``.
        subject: the subject's text.

    Returns:
        The prompt in tokens.

    Raises:
        SubjectNotInPromptError: no single place for the subject, or none of its characters has a token.
    """
    text, stop = render(template, subject)
    ids, offsets = encode(tokenizer, text)
    lookup = last_token_of(offsets, stop)
    if lookup is None:
        raise SubjectNotInPromptError(
            f"No token of {text!r} covers the end of the subject {subject!r}: the tokenizer drops "
            "these characters.",
            template=template,
            subject=subject,
        )
    return Prompt(tuple(ids), lookup)


def last_token_of(offsets: Sequence[tuple[int, int]], stop: int) -> int | None:
    """Return the last token that covers the character before `stop`."""
    for index in range(len(offsets) - 1, -1, -1):
        start, end = offsets[index]
        if start < stop <= end:
            return index
    return None


def encode_target(tokenizer: Any, prompt_text: str, target: str) -> list[int]:  # noqa: ANN401 - many classes
    """Tokenise a target as it follows a prompt, one space between.

    The joint text is tokenised, since a sentencepiece tokenizer gives the target alone another first token.
    Where a token would straddle the border, the target's own tokens are taken: a model that generates from
    the prompt cannot merge across it either.

    Args:
        tokenizer: a fast tokenizer.
        prompt_text: the rendered prompt, without white space at its end.
        target: the object's text.

    Returns:
        Token ids of the target.

    Raises:
        EmptyTargetError: nothing but white space.
    """
    if not target.strip():
        raise EmptyTargetError(
            f"The target {target!r} after {prompt_text!r} is empty: give the object's text.",
            prompt=prompt_text,
            target=target,
        )
    target = target.strip()
    prompt_ids, _ = encode(tokenizer, prompt_text)
    joint, _ = encode(tokenizer, f"{prompt_text} {target}")
    if joint[: len(prompt_ids)] == prompt_ids and len(joint) > len(prompt_ids):
        return joint[len(prompt_ids) :]
    # A tokenizer as Llama 2's puts a space before every text: one more would be a token of its own.
    bare, spaced = (
        list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (target, f" {target}")
    )
    return bare if tokenizer.decode([*prompt_ids, *bare]).endswith(f" {target}") else spaced


def plan(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    *,
    prefixes: Sequence[str] = (),
    word_dropout: float = 0.0,
    kl_template: str | None = None,
    max_target_tokens: int = 32,
    endings: bool = False,
) -> list[Unit]:
    """Group requests by subject and tokenise them. Nothing of the model is touched.

    Args:
        lm: the model.
        requests: facts to write; order decides the order of units.
        prefixes: texts put before every template, besides the bare template (the paper's random contexts).
        word_dropout: share of words that is left out where templates are taught again
            (`editor.wordings.contexts`).
        kl_template: prompt whose prediction at the subject must not drift, "{} is a" in the paper; None
            guards the unit's first row instead, which costs no forward of its own.
        max_target_tokens: longest target that is accepted.
        endings: also ask that the word ends after the target.

    Returns:
        One unit a subject.

    Raises:
        RequestError: any request that cannot be carried out.
    """
    by_subject: dict[str, list[EditRequest]] = {}
    seen: set[str] = set()
    for request in requests:
        if request.fact_id in seen:
            raise SubjectConflictError(
                f"Fact {request.fact_id!r} is asked for twice.", fact_id=request.fact_id
            )
        seen.add(request.fact_id)
        by_subject.setdefault(request.subject_id, []).append(request)
    units = [
        _unit(
            lm.tokenizer,
            subject_id,
            facts,
            prefixes,
            word_dropout=word_dropout,
            kl_template=kl_template,
            limit=max_target_tokens,
            endings=endings,
        )
        for subject_id, facts in by_subject.items()
    ]
    for unit in units:
        if lm.positions and unit.longest > lm.positions:
            raise PromptTooLongError(
                f"A prompt of {unit.subject_id!r} has {unit.longest} tokens with its target, and the model "
                f"takes {lm.positions}: shorten the relation's templates, or leave the subject out.",
                subject_id=unit.subject_id,
                tokens=unit.longest,
                limit=lm.positions,
            )
    return units


def _unit(
    tokenizer: Any,  # noqa: ANN401 - many classes
    subject_id: str,
    facts: Sequence[EditRequest],
    prefixes: Sequence[str],
    *,
    word_dropout: float,
    kl_template: str | None,
    limit: int,
    endings: bool,
) -> Unit:
    rows: list[Row] = []
    columns: dict[tuple[int, ...], int] = {}
    for index, template in wordings(facts, prefixes, word_dropout):
        prompt = encode_prompt(tokenizer, template, facts[index].subject)
        labels = _labels(tokenizer, template, facts[index], limit)
        ids = (*prompt.ids, *(labels if endings else labels[:-1]))
        rows.append(
            Row(
                ids,
                prompt.lookup,
                len(prompt.ids) - 1,
                labels,
                index,
                columns.setdefault(prompt.ids[: prompt.lookup + 1], len(columns)),
                guard=kl_template is None and not rows,
                end=len(ids) - 1 if endings else None,
            )
        )
    if kl_template is not None:
        prompt = encode_prompt(tokenizer, kl_template, facts[0].subject)
        rows.append(
            Row(prompt.ids[: prompt.lookup + 1], prompt.lookup, prompt.lookup, (), -1, -1, guard=True)
        )
    return Unit(subject_id, tuple(fact.fact_id for fact in facts), tuple(rows), tuple(columns), tuple(facts))


def _labels(tokenizer: Any, template: str, fact: EditRequest, limit: int) -> tuple[int, ...]:  # noqa: ANN401 - many classes
    labels = encode_target(tokenizer, render(template, fact.subject)[0], fact.target)
    if len(labels) > limit:
        raise TargetTooLongError(
            f"The target {fact.target!r} of fact {fact.fact_id!r} has {len(labels)} tokens, more than the "
            f"limit of {limit}: shorten the label or raise max_target_tokens.",
            fact_id=fact.fact_id,
            target=fact.target,
            tokens=len(labels),
            limit=limit,
        )
    return tuple(labels)
