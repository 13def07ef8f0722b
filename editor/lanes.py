"""Chunks side by side on a processor of several cores: a thread each, on modules of its own.

A product of a hundred rows keeps one core busy and gains little from a second one, and what lies between
products is one core's work anyway: two threads on every product take an evaluation from 0.073 to 0.071 s an
edit, two chunks at a time to half (benchmarks/RESULTS.md, "Editor"). Blocks are told what to run by hooks and
by what shadows their forward (`editor.activations`), so a lane has modules of its own; their weights are the
model's own, not copies.

A chunk gives in a lane what it gives to one thread alone, to the bit, and results come in the order of the
chunks.
"""

from __future__ import annotations

import copy
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from editor.model import LanguageModel

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST = 4
"""Beyond some lanes it is Python's lock that they wait for."""


class Lanes:
    """Where work on chunks runs.

    Args:
        models: a model a lane, around the same weights.
        pool: a thread a lane; None runs in the caller's.

    Attributes:
        count: how many items run at a time.
    """

    def __init__(self, models: list[LanguageModel], pool: ThreadPoolExecutor | None = None) -> None:
        self._free: SimpleQueue[LanguageModel] = SimpleQueue()
        for model in models:
            self._free.put(model)
        self.count, self._pool = len(models), pool

    def each(self, work: Callable[[LanguageModel, Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the result of every item, in their order, while the next ones run.

        Args:
            work: called with a model that nobody else uses meanwhile, and an item.
            items: taken one by one, a lane's worth ahead.
        """
        if self._pool is None:
            model = self._free.get()
            try:
                yield from (work(model, item) for item in items)
            finally:
                self._free.put(model)
            return
        running: deque[Future[Result]] = deque()
        for item in items:
            running.append(self._pool.submit(self._run, work, item))
            if len(running) > self.count:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()

    def _run(self, work: Callable[[LanguageModel, Item], Result], item: Item) -> Result:
        model = self._free.get()
        try:
            return work(model, item)
        finally:
            self._free.put(model)


@contextmanager
def lanes(lm: LanguageModel) -> Iterator[Lanes]:
    """Open a lane a core, up to a few, on a CPU; one where there is a GPU or a single thread.

    Work that runs when the body fails is waited for.

    Args:
        lm: the model. What is changed of its modules afterwards, hooks and the kind of attention, is not of
            the lanes; what is changed of its weights is.
    """
    threads = torch.get_num_threads()
    count = min(threads, _MOST) if lm.device.type == "cpu" else 1
    if count == 1:
        yield Lanes([lm])
        return
    models = [_beside(lm) for _ in range(count)]
    pool = ThreadPoolExecutor(count, "lane", initializer=torch.set_num_threads, initargs=(threads // count,))
    try:
        with pool:
            yield Lanes(models, pool)
    finally:
        torch.set_num_threads(threads)


def _beside(lm: LanguageModel) -> LanguageModel:
    """Return the model with modules of its own around the same weights and buffers."""
    shared = {id(one): one for one in (*lm.model.parameters(), *lm.model.buffers())}
    lm.word_ends  # noqa: B018 - found once for all lanes
    beside = copy.copy(lm)
    beside.model = copy.deepcopy(lm.model, shared)
    return beside
