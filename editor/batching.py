"""What runs in batches runs again in smaller ones where memory does not suffice."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

import torch

from editor.errors import OutOfMemoryError

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

Result = TypeVar("Result")


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
            if not _of_memory(error):
                raise
            if batch_tokens <= longest:
                raise OutOfMemoryError(
                    "Memory ran out with a single sequence in the batch: use a smaller model or a "
                    "larger machine.",
                    batch_tokens=batch_tokens,
                ) from error
            batch_tokens //= 2
            log.warning("memory ran out: going on with batches of %d tokens", batch_tokens)


def _of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether memory ran out; on a CPU torch has no class of its own for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
