"""How many tokens run at once: what free memory holds, and half as many where it does not after all."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, TypeVar

import torch

from editor.errors import OutOfMemoryError
from editor.precision import dtype_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from editor.model import LanguageModel
    from editor.presets import MemitSettings

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_CPU_TOKENS = 256
"""On a CPU small batches pad less and take as long as large ones."""
_LEAST_TOKENS, _MOST_TOKENS = 256, 16384
_SHARE = 0.5
"""Of free memory; the rest is for keys and values of earlier tokens and for solves."""
_STATES, _INNER = 12, 4
"""How many vectors as wide as a state, or as a key, a block's backward keeps of a token, at most."""
_NO_MEMORY = ("DefaultCPUAllocator", "STATUS_ALLOC_FAILED")
_LOGITS_BYTES = 8
"""Of a token's logits and what their softmax keeps, each."""


def tokens_at_once(lm: LanguageModel, settings: MemitSettings) -> int:
    """Return the most tokens of one forward to start with: as set, or as many as free memory holds."""
    if settings.batch_tokens:
        return settings.batch_tokens
    if lm.device.type == "cpu":
        return _CPU_TOKENS
    free, _ = torch.cuda.mem_get_info(lm.device)
    freed = torch.cuda.memory_reserved(lm.device) - torch.cuda.memory_allocated(lm.device)
    return fitting(lm, free + freed)


def fitting(lm: LanguageModel, free_bytes: int) -> int:
    """Return how many tokens' forward and backward fit into free memory: a power of two from 256 to 16,384.

    Args:
        lm: the model.
        free_bytes: memory that nobody uses.
    """
    tokens = _SHARE * free_bytes / bytes_of_a_token(lm)
    return min(_MOST_TOKENS, max(_LEAST_TOKENS, 1 << int(math.log2(max(1.0, tokens)))))


def bytes_of_a_token(lm: LanguageModel) -> int:
    """Return what a token of a forward leaves in memory for its backward, at most, all blocks and logits."""
    layers, itemsize = lm.layers, dtype_of(lm).itemsize
    block = (_STATES * layers.d + _INNER * layers.d_k) * itemsize
    vocabulary: int = lm.model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    return layers.count * block + _LOGITS_BYTES * vocabulary


def with_smaller_batches(longest: int, batch_tokens: int, attempt: Callable[..., Result]) -> Result:
    """Run `attempt` with a batch size, and again with half of it while memory runs out.

    Args:
        longest: tokens of the longest sequence that it runs.
        batch_tokens: most tokens of one forward, to start with.
        attempt: does the work, called with `batch_tokens`.

    Raises:
        OutOfMemoryError: memory ran out with a single row in the batch.
    """
    while True:
        try:
            return attempt(batch_tokens=batch_tokens)
        except (MemoryError, RuntimeError) as error:
            batch_tokens = _half(batch_tokens, error, alone=batch_tokens <= longest)


def groups(
    items: Iterable[Item], batch_tokens: int, length_of: Callable[[Item], int]
) -> Iterator[list[Item]]:
    """Cut items into runs of at most so many tokens, padding counted, and of one item at least."""
    group: list[Item] = []
    widest = 0
    for item in items:
        length = length_of(item)
        if group and max(widest, length) * (len(group) + 1) > batch_tokens:
            yield group
            group, widest = [], 0
        group.append(item)
        widest = max(widest, length)
    if group:
        yield group


def in_groups(
    items: Sequence[Item],
    batch_tokens: int,
    length_of: Callable[[Item], int],
    work: Callable[[list[Item]], Result],
) -> Iterator[tuple[list[Item], Result]]:
    """Work on runs of items as `groups` cuts them, and from where memory runs out on shorter ones.

    Args:
        items: what is worked on, in this order.
        batch_tokens: most tokens of a run, to start with.
        length_of: tokens of an item; 1 of each counts items.
        work: done again, on half a run, where memory ran out: it must leave nothing behind.

    Yields:
        Each run, and what came of it.

    Raises:
        OutOfMemoryError: memory ran out with a single item.
    """
    first = 0
    while first < len(items):
        rest = (items[number] for number in range(first, len(items)))
        group = next(groups(rest, batch_tokens, length_of))
        try:
            found = work(group)
        except (MemoryError, RuntimeError, OutOfMemoryError) as error:
            padded = len(group) * max(map(length_of, group))
            batch_tokens = _half(padded, error, alone=len(group) == 1)
            continue
        yield group, found
        first += len(group)


def _half(batch_tokens: int, error: Exception, *, alone: bool) -> int:
    """Return the batch size to go on with after an error, if it was for want of memory."""
    if not of_memory(error):
        raise error
    if alone:
        raise OutOfMemoryError(
            "Memory ran out with a single sequence in the batch: use a smaller model or a larger machine.",
            batch_tokens=batch_tokens,
        ) from error
    log.warning("memory ran out: going on with %d in a batch, for %d", batch_tokens // 2, batch_tokens)
    return batch_tokens // 2


def of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch has no class of its own for it on a CPU, nor for CUDA's libraries."""
    of_its_own = isinstance(error, MemoryError | torch.OutOfMemoryError | OutOfMemoryError)
    return of_its_own or any(mark in str(error) for mark in _NO_MEMORY)
