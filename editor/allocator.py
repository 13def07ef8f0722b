"""What a process that edits is told once, before anything runs.

The C library expects smaller blocks than tensors are. oneDNN, which multiplies bfloat16 matrices for torch on
a CPU, expects shapes that recur, and batches here have many.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform

log = logging.getLogger(__name__)

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 30
_MAPPED_FROM_BYTES = 1 << 30
_KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64"


def spare_memory() -> None:
    """Keep freed memory, and few of oneDNN's kernels. Call before the first product; safe to call again."""
    keep_freed_memory()
    # One is made for every shape of a product, takes most of a megabyte and 0.3 ms, and 1,024 stay by
    # default: 0.8 GB of 500 edits, whose batches no two are alike. oneDNN reads this once, when it first
    # makes one; a user's own setting stands.
    os.environ.setdefault(*_KERNELS)


def keep_freed_memory() -> None:
    """Keep up to 1 GiB of freed memory instead of giving it back to the kernel after every tensor.

    glibc maps each large block anew and unmaps it on free, so that every step pays for fresh, zeroed pages:
    a quarter of the time of a target-state step on two cores. Safe to call again; does nothing where the C
    library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    if not (mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES) and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)):
        log.info("the allocator kept its own thresholds; editing is a little slower")


def give_back_freed_memory() -> None:
    """Give freed memory back to the kernel, between stages whose blocks are of other sizes.

    What `keep_freed_memory` keeps serves the next step of the same search; a later stage cuts it up and asks
    for more beside it. Does nothing where the C library is not glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
