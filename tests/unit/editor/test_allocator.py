"""What a process that edits is told once."""

import os
import platform
import subprocess
import sys

import pytest

from editor.allocator import give_back_freed_memory, keep_freed_memory

_PROGRAM = """
import ctypes, resource
from editor.allocator import keep_freed_memory
if {keep}: keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
before = None
for turn in range(21):
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
    if turn == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, keep: bool) -> int:
    """Pages that twenty allocations of the same 64 MiB had to be given."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(keep=keep)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_freed_memory_is_used_again_without_new_pages():
    if platform.libc_ver()[0] != "glibc":
        keep_freed_memory()
        return
    assert faults(keep=True) < 0.1 * faults(keep=False)


_KEPT = """
import ctypes, pathlib
from editor.allocator import give_back_freed_memory, keep_freed_memory
keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(64 << 20) for _ in range(8)]
for block in blocks: ctypes.memset(block, 1, 64 << 20)
for block in blocks: libc.free(block)
def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1])
kept = resident()
give_back_freed_memory()
print((kept - resident()) * 4096 >> 20)
"""


def test_what_was_kept_is_given_back():
    give_back_freed_memory()
    if platform.libc_ver()[0] != "glibc":
        return
    done = subprocess.run([sys.executable, "-c", _KEPT], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 400, "MiB of the 512 that were freed"


_PRODUCTS = """
import torch
from editor.allocator import spare_memory
if {spare}: spare_memory()
matrix = torch.zeros(256, 256, dtype=torch.bfloat16)
for turn in range(2):
    for rows in range(16, 144):
        torch.zeros(rows, 256, dtype=torch.bfloat16) @ matrix
"""


def kernels_made(*, spare: bool) -> int:
    """How often oneDNN made a kernel for 128 products, taken twice."""
    told = {name: value for name, value in os.environ.items() if name != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    done = subprocess.run(
        [sys.executable, "-c", _PRODUCTS.format(spare=spare)],
        capture_output=True,
        text=True,
        check=True,
        env={**told, "ONEDNN_VERBOSE": "2"},
    )
    return done.stdout.count("create:cache_miss")


def test_kernels_of_many_shapes_are_not_all_kept():
    kept = kernels_made(spare=False)
    if kept < 128:
        pytest.skip("this processor's products of bfloat16 are not oneDNN's")
    assert kept < 200
    assert kernels_made(spare=True) >= 256
