"""What a model says: recall of facts and fluency, measured in batches.

p(text | prompt) = exp(mean log-likelihood of its tokens), length-normalised as in the paper's evaluation. A
target is exact when each of its tokens is the likeliest after those before it, which is what greedy
decoding checks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import torch

from editor import activations
from editor.batching import in_groups
from editor.layers import logits_of
from editor.requests import encode, encode_target, render
from editor.sampling import continue_texts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from editor.model import LanguageModel
    from editor.progress import Progress
    from editor.requests import EditRequest

# Logits, not states, fill the memory here: 1024 tokens of short prompts make some 300 rows of a vocabulary.
_BATCH_TOKENS = 1024
_GROWN_TOKENS = 2048
_GREEDY_TOKENS = 12
_READ_TOKENS = 256
"""Of each text whose perplexity is measured."""


@dataclass(frozen=True, slots=True)
class PromptRecall:
    """One prompt of one fact.

    Attributes:
        prompt: the rendered text.
        p_new: probability of the target.
        p_old: probability of the old target; None if there is none.
        success: p_new > p_old; for a fact without an old target, whether it is exact.
        exact: greedy decoding says the target.
        whole: and ends the word there.
        rank_new: rank of the target's first token among all tokens; 1 is what greedy decoding says.
        rank_old: of the old target's.
    """

    prompt: str
    p_new: float
    p_old: float | None
    success: bool
    exact: bool
    whole: bool
    rank_new: int
    rank_old: int | None


@dataclass(frozen=True, slots=True)
class RecallResult:
    """One fact.

    Attributes:
        fact_id: the caller's name for the fact.
        p_new: probability of the target on the first edit prompt.
        p_old: of the old target.
        success: p_new > p_old there.
        exact: greedy decoding of the first edit prompt says the target.
        greedy: what greedy decoding says there.
        prompts: every edit prompt.
        heldback: every held-back prompt.
    """

    fact_id: str
    p_new: float
    p_old: float | None
    success: bool
    exact: bool
    greedy: str
    prompts: tuple[PromptRecall, ...]
    heldback: tuple[PromptRecall, ...]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How a model rates one text after a prompt.

    Attributes:
        probability: exp of the mean log-likelihood of its tokens.
        exact: every token is the likeliest.
        tokens: how many.
        matched: how many of them are the likeliest after the ones before.
        rank: of the first among all tokens; 1 is the likeliest.
        ended: the likeliest token after the text ends its last word.
    """

    probability: float
    exact: bool
    tokens: int
    matched: int
    rank: int
    ended: bool = False


def check(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    *,
    greedy: bool = True,
    progress: Progress | None = None,
) -> list[RecallResult]:
    """Measure the recall of facts on their edit prompts and held-back prompts.

    Args:
        lm: the model as it is.
        requests: the facts.
        greedy: also decode the first prompt of each fact.
        progress: called with (stage, done, total).

    Returns:
        One result a fact, in order.
    """
    pairs: list[tuple[str, str]] = []
    for request in requests:
        for template in (*request.prompts, *request.heldback):
            prompt = render(template, request.subject)[0]
            pairs.append((prompt, request.target))
            if request.old_target:
                pairs.append((prompt, request.old_target))
    found = iter(likelihoods(lm, pairs, progress=progress))
    prompts = [render(request.prompts[0], request.subject)[0] for request in requests]
    texts = completions(lm, prompts, tokens=_GREEDY_TOKENS) if greedy else [""] * len(requests)
    results = []
    for request, text in zip(requests, texts, strict=True):
        rated = [
            _rated(request, render(template, request.subject)[0], found)
            for template in (*request.prompts, *request.heldback)
        ]
        first, count = rated[0], len(request.prompts)
        results.append(
            RecallResult(
                request.fact_id,
                first.p_new,
                first.p_old,
                first.success,
                first.exact,
                text,
                tuple(rated[:count]),
                tuple(rated[count:]),
            )
        )
    return results


def _rated(request: EditRequest, prompt: str, found: Iterator[Likelihood]) -> PromptRecall:
    new = next(found)
    old = next(found) if request.old_target else None
    success = new.probability > old.probability if old is not None else new.exact
    return PromptRecall(
        prompt,
        new.probability,
        old.probability if old else None,
        success,
        new.exact,
        new.exact and new.ended,
        new.rank,
        old.rank if old else None,
    )


def likelihoods(
    lm: LanguageModel,
    pairs: Sequence[tuple[str, str]],
    *,
    progress: Progress | None = None,
) -> list[Likelihood]:
    """Rate texts after prompts, in batches of like length.

    Args:
        lm: the model.
        pairs: (prompt, text); the text follows after one space.
        progress: called with ("recall", done, total).

    Returns:
        One rating a pair, in order.
    """
    rows = []
    for prompt, text in pairs:
        prompt_ids, labels = encode(lm.tokenizer, prompt)[0], encode_target(lm.tokenizer, prompt, text)
        rows.append(([*prompt_ids, *labels], len(prompt_ids) - 1, labels))
    return rate(lm, rows, progress=progress)


@torch.no_grad()
def rate(
    lm: LanguageModel,
    rows: Sequence[tuple[Sequence[int], int, Sequence[int]]],
    *,
    progress: Progress | None = None,
) -> list[Likelihood]:
    """Rate tokenised texts, in batches of like length.

    Args:
        lm: the model.
        rows: token ids of prompt and text (without the text's last token nobody asks what follows it); the
            index from which the text's first token is predicted; the text's token ids.
        progress: called with ("recall", done, total).

    Returns:
        One rating a row, in order.
    """
    lengths = [len(ids) for ids, _, _ in rows]
    results: dict[int, Likelihood] = {}
    for group, ratings in in_groups(
        _longest_first(lengths),
        _BATCH_TOKENS,
        lengths.__getitem__,
        lambda group: _rate(lm, [rows[i] for i in group]),
    ):
        results.update(zip(group, ratings, strict=True))
        if progress is not None:
            progress("recall", len(results), len(rows))
    return [results[number] for number in range(len(rows))]


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)


def _rate(lm: LanguageModel, rows: Sequence[tuple[Sequence[int], int, Sequence[int]]]) -> list[Likelihood]:
    ids, mask, positions = activations.padded([row[0] for row in rows], lm.device)
    hidden = activations.run(lm, ids, mask, positions)
    where = [
        (number, first + offset)
        for number, (_, first, labels) in enumerate(rows)
        for offset in range(len(labels))
    ]
    labels = torch.tensor([label for _, _, labels in rows for label in labels], device=lm.device)
    picked = hidden[[w[0] for w in where], [w[1] for w in where]]
    logits = logits_of(lm.model, picked).float()
    chosen = logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0].tolist()
    right = (logits.argmax(dim=1) == labels).tolist()
    ranks = (1 + (logits > logits.gather(1, labels[:, None])).sum(dim=1)).tolist()
    ended = _ended(lm, hidden, rows)
    results, at = [], 0
    for number, (_, _, row_labels) in enumerate(rows):
        stop = at + len(row_labels)
        mean = math.fsum(chosen[at:stop]) / len(row_labels)
        matched = sum(right[at:stop])
        results.append(
            Likelihood(
                math.exp(mean),
                matched == len(row_labels),
                len(row_labels),
                int(matched),
                ranks[at],
                number in ended,
            )
        )
        at = stop
    return results


def _ended(
    lm: LanguageModel, hidden: Tensor, rows: Sequence[tuple[Sequence[int], int, Sequence[int]]]
) -> set[int]:
    """Return the rows after whose text the likeliest token ends the word."""
    last = [(number, first + len(labels)) for number, (_, first, labels) in enumerate(rows)]
    asked = [(number, at) for number, at in last if at < len(rows[number][0])]
    if not asked:
        return set()
    logits = logits_of(lm.model, hidden[[one[0] for one in asked], [one[1] for one in asked]])
    ends = lm.word_ends[logits.argmax(dim=1)].tolist()
    return {number for (number, _), end in zip(asked, ends, strict=True) if end}


def completions(lm: LanguageModel, prompts: Sequence[str], *, tokens: int = _GREEDY_TOKENS) -> list[str]:
    """Decode greedily after many prompts at once.

    Args:
        lm: the model.
        prompts: texts.
        tokens: how many tokens to add.

    Returns:
        What the model adds to each prompt, cut where it ends its text and at the end of its first line.
    """
    special = set(lm.tokenizer.all_special_ids)
    encoded = [encode(lm.tokenizer, prompt)[0] for prompt in prompts]
    lengths = [len(ids) + tokens for ids in encoded]

    def grown(group: list[int]) -> list[list[int]]:
        starts = [encoded[i] for i in group]
        return continue_texts(lm, starts, max(map(len, starts)) + tokens, generator=None)

    texts = {}
    for group, rows in in_groups(_longest_first(lengths), _GROWN_TOKENS, lengths.__getitem__, grown):
        for i, row in zip(group, rows, strict=True):
            # What follows the end of a text is another text: decoded without the mark, they run together.
            said = list(takewhile(lambda token: token not in special, row[len(encoded[i]) :]))
            text = lm.tokenizer.decode(said)
            # PostgreSQL keeps no NUL, which a byte-level vocabulary can say.
            texts[i] = text.replace("\0", "").strip().split("\n")[0].strip()
    return [texts[number] for number in range(len(prompts))]


@torch.no_grad()
def surprise(lm: LanguageModel, texts: Sequence[str]) -> float:
    """Return the mean negative log-likelihood of all tokens of some texts, in nats.

    Args:
        lm: the model.
        texts: held-out texts; of each the first 256 tokens are read.

    Returns:
        Nats a token; NaN when no text has two tokens.
    """
    rows = [encode(lm.tokenizer, text)[0][:_READ_TOKENS] for text in texts]
    rows = sorted((row for row in rows if len(row) > 1), key=len, reverse=True)

    def nats_of(group: list[list[int]]) -> float:
        ids, mask, positions = activations.padded(group, lm.device)
        hidden = activations.run(lm, ids, mask, positions)
        valid = mask[:, 1:].bool()
        total = 0.0
        for number in range(len(group)):
            logits = logits_of(lm.model, hidden[number, :-1][valid[number]]).float()
            labels = ids[number, 1:][valid[number]]
            total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        return total

    total = sum(nats for _, nats in in_groups(rows, _BATCH_TOKENS, len, nats_of))
    count = sum(len(row) - 1 for row in rows)
    return total / count if count else math.nan


def perplexity(lm: LanguageModel, texts: Sequence[str]) -> float:
    """Return exp of `surprise`; infinite where a number cannot hold it."""
    return float(torch.tensor(surprise(lm, texts), dtype=torch.float64).exp())
