"""Text from the model itself: continuations of many texts at once, and what is sampled that way.

Keys and values of what was read are kept, so that a token costs one step of one token. Sampled text stands in
for a corpus where none is at hand (`editor.moments`), and for the paper's random contexts.
"""

from __future__ import annotations

from importlib import resources
from itertools import accumulate, cycle
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from editor import activations
from editor.allocator import give_back_freed_memory
from editor.batching import in_groups
from editor.digests import digest_of
from editor.layers import logits_of
from editor.precision import lowered
from editor.requests import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from editor.model import LanguageModel
    from editor.progress import Progress

PAPER_TOP_K = 5
"""Of how many likeliest tokens kmeng01/memit, and the code of AlphaEdit, draw their random contexts."""
_ROWS = 128
_LENGTH, _PREFIX_LENGTH = 120, 10
_KEPT_STEPS = 8
"""Steps between which freed memory is kept. Keys and values grow by a token a step and find no place where
those of the step before were: two batches of SmolLM2 peaked at 4 GB without, at 1.9 with it."""


def sampled(
    lm: LanguageModel,
    tokens: int,
    *,
    seed: int = 0,
    start: int = 0,
    progress: Progress | None = None,
) -> Iterator[list[list[int]]]:
    """Sample text from the model at temperature 1, many rows at once with cached keys and values.

    Where bfloat16 is faster it is sampled so: any text of the model's serves. Where memory runs out, fewer
    rows are sampled at once, and draw other text.

    Args:
        lm: the model.
        tokens: at least so many, to the whole row.
        seed: equal seeds give equal text on one machine.
        start: rows that are passed over; as many as some batches of an earlier call held.
        progress: called with ("sample", tokens done, tokens).

    Yields:
        Some rows of token ids, each beginning with an everyday opening of a sentence.
    """
    openings = [encode(lm.tokenizer, line)[0] for line in everyday_openings()]
    new = _LENGTH - max(map(len, openings))
    totals = accumulate(len(opening) + new for opening in cycle(openings))
    last = next(number for number, total in enumerate(totals, start=1) if total >= tokens)

    def grown(numbers: list[int]) -> list[list[int]]:
        starts = [list(openings[number % len(openings)]) for number in numbers]
        # A seed of their own, so that what was interrupted goes on as it would have gone.
        own = int(digest_of([seed, numbers[0]])[:12], 16)
        generator = torch.Generator(device=lm.device).manual_seed(own)

        def report(done: int) -> None:
            if progress is not None:
                progress("sample", min(tokens, numbers[0] * _LENGTH + done * len(starts)), tokens)

        with lowered(lm, "auto"):
            length = new + max(map(len, starts))
            return continue_texts(lm, starts, length, generator=generator, progress=report)

    for _, rows in in_groups(range(start, last), _ROWS * _LENGTH, lambda _: _LENGTH, grown):
        yield rows


@torch.no_grad()
def continue_texts(
    lm: LanguageModel,
    starts: Sequence[Sequence[int]],
    length: int,
    *,
    generator: torch.Generator | None,
    top_k: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Continue many texts at once.

    Args:
        lm: the model.
        starts: token ids to continue.
        length: tokens per text, its start included; for starts of unlike lengths the new tokens are equal
            in number.
        generator: samples at temperature 1; None takes the likeliest token.
        top_k: samples among so many likeliest tokens; None among all.
        progress: called with the tokens done per row.

    Returns:
        The starts with their continuations.
    """
    ids, mask, positions = activations.padded(starts, lm.device)
    lengths = mask.sum(dim=1)
    cache = DynamicCache()
    rows = torch.arange(len(starts), device=lm.device)
    new: list[Tensor] = []
    for step in range(length - ids.shape[1]):
        if step == 0:
            last = activations.run(lm, ids, mask, positions, cache=cache)[rows, lengths - 1]
        else:
            mask = torch.cat([mask, mask.new_ones(len(starts), 1)], dim=1)
            place = (lengths + step - 1)[:, None]
            last = activations.run(lm, new[-1][:, None], mask, place, cache=cache)[:, 0]
        logits = logits_of(lm.model, last).float()
        if top_k is not None:
            least = logits.topk(top_k, dim=1).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        new.append(_choose(logits, generator))
        if step % _KEPT_STEPS == 0:
            give_back_freed_memory()
        if progress is not None:
            progress(ids.shape[1] + step + 1)
    grown = torch.stack(new, dim=1).tolist() if new else [[] for _ in starts]
    return [[*start, *more] for start, more in zip(starts, grown, strict=True)]


def _choose(logits: Float[Tensor, "rows vocab"], generator: torch.Generator | None) -> Int[Tensor, " rows"]:
    if generator is None:
        return logits.argmax(dim=1)
    # The inverse of the distribution: one random number a row, where a race of exponentials takes one a token
    # (0.02 s for 0.29 over 128 rows of 49,152).
    shares = (logits - logits.amax(dim=1, keepdim=True)).exp_().cumsum(dim=1)
    total = shares[:, -1:].contiguous()
    drawn = torch.rand(total.shape, generator=generator, device=total.device) * total
    # The first share above it; rounding may not carry it to the end, behind which nothing is.
    below = torch.minimum(drawn, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(shares, below, right=True).squeeze(1)


def sample_prefixes(
    lm: LanguageModel, count: int, *, seed: int = 0, top_k: int | None = None
) -> tuple[str, ...]:
    """Sample the paper's random contexts: short texts to put before a template.

    Args:
        lm: the model.
        count: how many.
        seed: equal seeds give equal prefixes on one machine; keep the texts, not the seed.
        top_k: of how many likeliest tokens each is drawn (`PAPER_TOP_K`); None takes all.

    Returns:
        Prefixes, each ending in a full stop.
    """
    generator = torch.Generator(device=lm.device).manual_seed(seed)
    starts = [encode(lm.tokenizer, word)[0] for word in ("The", "Therefore", "Because", "I", "You")]
    chosen = [starts[i % len(starts)] for i in range(count)]
    rows = continue_texts(lm, chosen, _PREFIX_LENGTH, generator=generator, top_k=top_k) if chosen else []
    texts = [lm.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    # A brace would read as a second place for the subject.
    return tuple(" ".join(text.replace("{", " ").replace("}", " ").split()) + "." for text in texts)


def everyday_openings() -> list[str]:
    """Return how everyday sentences in English begin."""
    text = resources.files("editor").joinpath("openings.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]
