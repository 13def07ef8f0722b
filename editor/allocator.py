"""What the C library is told before edits: it expects smaller blocks than tensors are."""

from __future__ import annotations

import ctypes
import logging
import platform

log = logging.getLogger(__name__)

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 30
_MAPPED_FROM_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Keep up to 1 GiB of freed memory instead of giving it back to the kernel after every tensor.

    glibc maps each large block anew and unmaps it on free, so that every step pays for fresh, zeroed pages:
    a quarter of the time of a target-state step on two cores. Safe to call again.

    Returns:
        Whether the allocator took it; False where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    taken = bool(mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)) and bool(
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    )
    if not taken:
        log.info("the allocator kept its own thresholds; editing is a little slower")
    return taken


def give_back_freed_memory() -> None:
    """Give freed memory back to the kernel, between stages whose blocks are of other sizes.

    What `keep_freed_memory` keeps serves the next step of the same search; a later stage cuts it up and asks
    for more beside it. Does nothing where the C library is not glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
