"""Thin Prefect tasks over the steps of a night: names and retries, nothing else.

Only the network steps retry, and only errors that may pass by themselves; the edit is never retried blindly, since
the ledger says what is owed. No task caches: their inputs are models, sessions and leases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows import night
from flows.retry import is_transient

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State, TaskRun
    from prefect.tasks import Task


def _worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    result = state.result(raise_on_failure=False)
    return isinstance(result, BaseException) and is_transient(result)


_NETWORK = {
    "cache_policy": NO_CACHE,
    "retries": 3,
    "retry_delay_seconds": [10, 60, 300],
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _worth_retrying,
}

probe = task(night.probe, name="probe", **_NETWORK)
pull = task(night.pull, name="pull", **_NETWORK)
diff = task(night.record, name="diff", cache_policy=NO_CACHE)
plan = task(night.plan, name="plan", cache_policy=NO_CACHE)
edit = task(night.edit, name="edit", cache_policy=NO_CACHE)
check = task(night.check, name="check", cache_policy=NO_CACHE)
promote = task(night.settle, name="promote", cache_policy=NO_CACHE)
