"""Thin Prefect tasks over the steps of a night: names and retries, nothing else.

Only the network steps retry, and only errors that may pass by themselves; the edit is never retried
blindly, since the ledger says what is owed. No task caches: their inputs are models, sessions and leases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from prefect import Task
from prefect.cache_policies import NO_CACHE, CachePolicy

from flows import night, remaking, writing
from flows.retry import is_transient

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ParamSpec, TypeVar

    from prefect.client.schemas.objects import State, TaskRun

    P = ParamSpec("P")
    R = TypeVar("R")

_UNCACHED = cast("CachePolicy", NO_CACHE)


def _worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    result = state.result(raise_on_failure=False)
    return isinstance(result, BaseException) and is_transient(result)


def _step(name: str, function: Callable[P, R]) -> Task[P, R]:
    return Task(function, name=name, cache_policy=_UNCACHED)


def _network_step(name: str, function: Callable[P, R]) -> Task[P, R]:
    return Task(
        function,
        name=name,
        cache_policy=_UNCACHED,
        retries=3,
        retry_delay_seconds=[10, 60, 300],
        retry_jitter_factor=0.5,
        retry_condition_fn=_worth_retrying,
    )


probe = _network_step("probe", night.probe)
pull = _network_step("pull", night.pull)
diff = _step("diff", night.record)
plan = _step("plan", night.plan)
edit = _step("edit", writing.edit)
remake = _step("remake", remaking.remake)
check = _step("check", writing.check)
promote = _step("promote", writing.settle)
