"""Teacher-forced losses with gradients, for the methods that descend on weights."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from editor import activations
from editor.layers import logits_of
from editor.requests import encode, encode_target, render

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from editor.model import LanguageModel
    from editor.progress import Progress
    from editor.requests import EditRequest


@dataclass(frozen=True, slots=True)
class Line:
    """A prompt and its target in tokens.

    Attributes:
        ids: prompt and all but the last target token.
        first: index from which the first target token is predicted.
        labels: target tokens.
    """

    ids: tuple[int, ...]
    first: int
    labels: tuple[int, ...]


def line(lm: LanguageModel, prompt: str, target: str) -> Line:
    """Tokenise a prompt and the target that follows it."""
    ids, labels = encode(lm.tokenizer, prompt)[0], encode_target(lm.tokenizer, prompt, target)
    return Line((*ids, *labels[:-1]), len(ids) - 1, tuple(labels))


def lines(lm: LanguageModel, requests: Sequence[EditRequest]) -> list[Line]:
    """Tokenise every edit prompt of some facts."""
    return [
        line(lm, render(template, request.subject)[0], request.target)
        for request in requests
        for template in request.prompts
    ]


def nll(lm: LanguageModel, rows: Sequence[Line]) -> Float[Tensor, " rows"]:
    """Return -log p(target | prompt) / tokens of each line, with its graph.

    Args:
        lm: the model.
        rows: lines of one batch.

    Returns:
        Mean negative log-likelihood per line, in nats a token.
    """
    ids, mask, positions = activations.padded([row.ids for row in rows], lm.device)
    hidden = activations.run(lm, ids, mask, positions)
    where = [(number, row.first + step) for number, row in enumerate(rows) for step in range(len(row.labels))]
    labels = torch.tensor([label for row in rows for label in row.labels], device=lm.device)
    owner = torch.tensor([number for number, _ in where], device=lm.device)
    columns = torch.tensor([column for _, column in where], device=lm.device)
    logits = logits_of(lm.model, hidden[owner, columns]).float()
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    lengths = torch.tensor([float(len(row.labels)) for row in rows], device=lm.device)
    return torch.zeros(len(rows), device=lm.device).index_add(0, owner, each) / lengths


def descend(
    lm: LanguageModel,
    rows: Sequence[Line],
    optimiser: torch.optim.Optimizer,
    *,
    passes: int,
    at_once: int,
    stop_loss: float,
    seed: int,
    after_step: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> None:
    """Pass over the lines in shuffled chunks until they are learnt or the passes are used up.

    Args:
        lm: the model.
        rows: what to learn.
        optimiser: holds the weights that learn.
        passes: most passes over all lines.
        at_once: lines of one step.
        stop_loss: mean loss of a pass, in nats a token, below which it ends.
        seed: of the shuffling.
        after_step: called after every step.
        progress: called with ("targets", passes done, passes).
    """
    shuffled, order = random.Random(seed), list(rows)  # noqa: S311 - no secret
    for done in range(passes):
        shuffled.shuffle(order)
        total = 0.0
        for start in range(0, len(order), at_once):
            chunk = order[start : start + at_once]
            loss = nll(lm, chunk).mean()
            total += float(loss.detach()) * len(chunk)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if after_step is not None:
                after_step()
        if progress is not None:
            progress("targets", done + 1, passes)
        if total / len(order) < stop_loss:
            return


def next_token(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> Float[Tensor, "rows vocab"]:
    """Return the log-probabilities of the token after each text, with their graph."""
    ids, mask, positions = activations.padded(rows, lm.device)
    hidden = activations.run(lm, ids, mask, positions)
    last = mask.sum(dim=1) - 1
    picked = hidden[torch.arange(len(rows), device=lm.device), last]
    return logits_of(lm.model, picked).float().log_softmax(dim=1)
