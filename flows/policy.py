"""When a rebuild is due: after so many nights, or where a bound is crossed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows import heads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flows.settings import Settings
    from flows.workspace import Workspace
    from storage.records.checkpoints import CheckpointRow
    from storage.records.runs import Lease

PATIENCE = 20
"""Checkpoints that bounds rest for after a rebuild that failed, where no number of nights is set."""
GROWN = 1.1
"""The norm must have grown by this factor since the last rebuild, or another one could not mend it."""


def wanted(ws: Workspace, lease: Lease) -> str:
    """Say why a rebuild is due now by the policy of the home; empty if it is not."""
    # A night that writes everything live anew stands on the base too, and carries edits.
    failed = [
        row.id
        for row in ws.ledger.checkpoints(lease.model)
        if row.from_base and not row.edits and row.state in {"rejected", "abandoned", "rolled_back"}
    ]
    return due(ws.settings, ws.ledger.lineage(lease.model), failed=max(failed, default=0))


def due(settings: Settings, lineage: Sequence[CheckpointRow], *, failed: int = 0) -> str:
    """Say why a rebuild is due by the policy of the settings; empty if it is not.

    Args:
        settings: `rebuild_nights`, `rebuild_norm`, `rebuild_retention`.
        lineage: the live checkpoint and its ancestors, root first.
        failed: id of the last rebuild that a gate rejected, that died, or that a person took back; nights are
            counted from it, and bounds rest as long, or a model that fails would be rebuilt every night.
    """
    standing = heads.since_base(lineage)
    last = standing[0] if standing and standing[0].from_base else None
    since = standing if last is None else standing[1:]
    if not since:
        return ""
    norm, retention = (since[-1].metrics.get(name) for name in ("norm", "retention"))
    bound = settings.rebuild_norm
    if bound is not None and last is not None:
        bound = max(bound, GROWN * (last.metrics.get("norm") or 0.0))
    waited = sum(row.id > failed for row in since)
    if settings.rebuild_nights and waited >= settings.rebuild_nights:
        return f"{waited} checkpoints since the base or the last rebuild"
    if waited < min(len(since), settings.rebuild_nights or PATIENCE):
        return ""
    if bound is not None and norm is not None and norm > bound:
        return f"the edited weights are {norm:.3f} of their norm from the base's (bound {bound:.3f})"
    floor = settings.rebuild_retention
    if floor is not None and retention is not None and retention < floor:
        return f"retention was {retention:.3f} (bound {floor:.3f})"
    return ""
