"""Chunks side by side on a processor of several cores: a thread each, on modules of its own.

A product of a hundred rows keeps one core busy and gains little from a second one, and what lies between
products is one core's work anyway: two threads on every product cost a third more processor time for hardly
any of the clock, a chunk a thread takes a third off it (docs/log.md, 2026-11-30). Blocks are told what to run
by hooks and by what shadows their forward (`editor.activations`), so a lane has modules of its own; their
weights are the model's own, not copies. What a forward leaves for its backward is held once a lane.
"""

from __future__ import annotations

import copy
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
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

    def each(
        self,
        work: Callable[[LanguageModel, Item], Result],
        items: Iterable[Item],
        take: Callable[[Result], object],
    ) -> None:
        """Work on items; when this returns or fails, nothing runs any more.

        Args:
            work: called with a model that nobody else uses meanwhile, and an item.
            items: taken one by one, a lane's worth ahead.
            take: called with every result, in the order of the items, in the caller's thread.
        """
        if self._pool is None:
            for item in items:
                take(self._run(work, item))
            return
        running: deque[Future[Result]] = deque()
        try:
            for item in items:
                running.append(self._pool.submit(self._run, work, item))
                if len(running) > self.count:
                    take(running[0].result())
                    running.popleft()
            while running:
                take(running[0].result())
                running.popleft()
        finally:
            # The caller may put other weights back next, which running work must not see.
            for future in running:
                future.cancel()
            wait(running)

    def _run(self, work: Callable[[LanguageModel, Item], Result], item: Item) -> Result:
        model = self._free.get()
        try:
            return work(model, item)
        finally:
            self._free.put(model)


@contextmanager
def lanes(lm: LanguageModel) -> Iterator[Lanes]:
    """Open some lanes on a CPU, which share its threads out; one where there is a GPU or a single thread.

    Args:
        lm: the model. What is changed of its modules afterwards, hooks and the kind of attention, is not of
            the lanes; what is changed of its weights is.
    """
    threads = torch.get_num_threads()
    each = -(-threads // _MOST)
    count = threads // each if lm.device.type == "cpu" else 1
    if count == 1:
        yield Lanes([lm])
        return
    models = [_beside(lm) for _ in range(count)]
    try:
        with ThreadPoolExecutor(count, "lane", initializer=torch.set_num_threads, initargs=(each,)) as pool:
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
