"""Merged items: a redirect changes a name, not a fact. Pure.

What the model holds under the old id is judged as the new one's. Nothing is edited for the merge itself; when
the fact later changes, the edit goes to the new id and the old one's state leaves with it. Where the model
holds the fact under both ids, nothing keeps the old one's up to date any more: it is retracted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kb.model import ValueKind
from kb.semantics import resolve

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from storage.records import Pair
    from storage.records.planned import Group

Scope = tuple[str, str, str]


def family(pairs: Iterable[Pair], redirects: Mapping[str, str]) -> set[Pair]:
    """The given groups, with the groups of every item merged into theirs or that theirs was merged into.

    Args:
        pairs: (subject, property) groups.
        redirects: target by merged item.
    """
    merged: dict[str, set[str]] = {}
    for source in redirects:
        merged.setdefault(resolve(source, redirects), set()).add(source)
    found: set[Pair] = set()
    for subject, prop in pairs:
        target = resolve(subject, redirects)
        found |= {(one, prop) for one in (subject, target, *merged.get(target, ()))}
    return found


def follow(groups: Iterable[Group], redirects: Mapping[str, str]) -> tuple[list[Group], dict[Scope, Scope]]:
    """Give what is held and waits of merged items to the items they became.

    Args:
        groups: with `family`, so that source and target are both there.
        redirects: target by merged item.

    Returns:
        The groups of items that still are themselves, with those of merged ones that hold what their target
        holds too, and where each fact that was handed over is held, by its new scope.
    """
    by_pair = {(group.subject, group.property): group for group in groups}
    handed_over: dict[Scope, Scope] = {}
    for subject, prop in sorted(by_pair):
        target = resolve(subject, redirects)
        if target == subject:
            continue
        source = by_pair.pop((subject, prop))
        into = by_pair.get((target, prop))
        if into is None:
            continue
        taken = {row.slot for row in into.held}
        moved = [row for row in source.held if row.slot not in taken]
        doubled = {row.slot for row in source.held} & taken
        if doubled:
            by_pair[subject, prop] = replace(
                source,
                statements=(),
                held=tuple(row for row in source.held if row.slot in doubled),
                pending=tuple(row for row in source.pending if row.slot in doubled),
            )
        handed_over |= {(target, prop, row.slot): (subject, prop, row.slot) for row in moved}
        waits = {row.slot for row in into.pending}
        by_pair[target, prop] = replace(
            into,
            held=(*into.held, *(replace(row, subject=target) for row in moved)),
            pending=(
                *into.pending,
                *(replace(row, subject=target) for row in source.pending if row.slot not in waits | doubled),
            ),
        )
    return list(by_pair.values()), handed_over


def holders(
    groups: Iterable[Group], handed_over: Mapping[Scope, Scope], redirects: Mapping[str, str]
) -> dict[Scope, tuple[Scope, ...]]:
    """Tell which of the ledger's facts hold what is judged in a slot, where it is not the slot's own alone.

    Args:
        groups: as `follow` gives them.
        handed_over: likewise.
        redirects: target by merged item; in a relation of many values an object is a slot.
    """
    found: dict[Scope, list[Scope]] = {}
    for group in groups:
        for row in group.held:
            here = (group.subject, group.property, row.slot)
            slot = resolve(row.slot, redirects) if row.value_kind == ValueKind.ITEM else row.slot
            judged = (group.subject, group.property, slot)
            found.setdefault(judged, []).append(handed_over.get(here, here))
    return {scope: tuple(where) for scope, where in found.items() if where != [scope]}
