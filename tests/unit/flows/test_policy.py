"""A rebuild is due after so many nights or where a bound is crossed, and not every night where it fails."""

from types import SimpleNamespace

import pytest

from flows import policy
from flows.settings import Settings


def night(number, *, norm=None, retention=None, **more):
    """A checkpoint of the ledger: its id, what its checks measured, on what it stands, how it ended."""
    row = {"from_base": False, "edits": 3, "state": "superseded", **more}
    return SimpleNamespace(id=number, metrics={"norm": norm, "retention": retention}, **row)


def rebuilt(number, **more):
    """One that stands on the base and carries no edits."""
    return night(number, from_base=True, **{"edits": 0, **more})


def nights(first, last, **more):
    """One a night, the last of them with what was measured."""
    return [*(night(number) for number in range(first, last)), night(last, **more)]


def bounds(count=0, norm=None, retention=None):
    return Settings(
        home="/nowhere", model="tiny", rebuild_nights=count, rebuild_norm=norm, rebuild_retention=retention
    )


def test_nothing_is_due_before_a_night_or_straight_after_a_rebuild():
    strict = bounds(1, norm=0.1, retention=1.0)
    assert policy.due(strict, []) == ""
    assert policy.due(strict, [night(1), rebuilt(2, norm=0.5, retention=0.5)]) == ""


def test_nights_are_counted_from_the_base_or_from_the_last_rebuild():
    assert policy.due(bounds(3), nights(1, 2)) == ""
    assert policy.due(bounds(3), nights(1, 3)).startswith("3 checkpoints")
    since = [*nights(1, 5), rebuilt(6), *nights(7, 8)]
    assert policy.due(bounds(3), since) == ""
    assert policy.due(bounds(3), [*since, night(9)]).startswith("3 checkpoints")
    assert policy.due(bounds(0), nights(1, 90)) == "", "0: never"


def test_after_a_rebuild_that_failed_as_many_nights_have_to_pass_again():
    lineage = [night(1), night(2), night(3), night(5)]
    assert policy.due(bounds(2), lineage, failed=4) == ""
    assert policy.due(bounds(2), [*lineage, night(6)], failed=4).startswith("2 checkpoints")


def test_the_norm_of_the_last_night_decides_once_it_is_over_its_bound():
    bound = bounds(norm=0.4)
    assert "0.410 of their norm from the base's (bound 0.400)" in policy.due(bound, nights(1, 2, norm=0.41))
    assert policy.due(bound, nights(1, 2, norm=0.4)) == ""
    assert policy.due(bound, nights(1, 2)) == "", "not measured"
    assert policy.due(bound, [night(1, norm=0.41), night(2, norm=0.3)]) == ""


@pytest.mark.parametrize(
    ("remade", "now", "due"),
    [
        (0.48, 0.52, False),  # another rebuild would end as far away
        (0.48, 0.53, True),
        (0.1, 0.3, False),  # grown, but within the bound
        (0.1, 0.41, True),
        (None, 0.41, True),
    ],
)
def test_the_norm_must_also_have_grown_since_the_last_rebuild(remade, now, due):
    lineage = [night(1), rebuilt(2, norm=remade), night(3, norm=now)]
    assert bool(policy.due(bounds(norm=0.4), lineage)) is due


def test_the_retention_of_the_last_night_decides_once_it_is_under_its_bound():
    bound = bounds(retention=0.95)
    assert policy.due(bound, nights(1, 2, retention=0.94)) == "retention was 0.940 (bound 0.950)"
    assert policy.due(bound, nights(1, 2, retention=0.95)) == ""
    assert policy.due(bound, nights(1, 2)) == "", "not measured"
    assert policy.due(bound, [night(1, retention=0.94), night(2, retention=1.0)]) == ""


def test_what_has_no_bound_crosses_none():
    assert policy.due(bounds(), nights(1, 2, norm=9.0, retention=0.0)) == ""


@pytest.mark.parametrize("crossed", [{"norm": 0.5}, {"retention": 0.5}])
def test_bounds_rest_after_a_rebuild_that_failed(crossed):
    """For as many nights as are counted, else for the patience; one before the last rebuild is past."""
    loose = bounds(norm=0.4, retention=0.9)
    rest = policy.PATIENCE
    assert policy.due(loose, nights(1, 1, **crossed))
    assert policy.due(loose, [night(1), *nights(3, rest + 1, **crossed)], failed=2) == ""
    assert policy.due(loose, [night(1), *nights(3, rest + 2, **crossed)], failed=2)
    assert policy.due(loose, [night(1), rebuilt(3), night(4, **crossed)], failed=2)
    counted = bounds(rest + 9, norm=0.4, retention=0.9)
    assert policy.due(counted, [night(1), *nights(3, rest + 2, **crossed)], failed=2) == ""
    assert policy.due(counted, nights(1, 2, **crossed))


@pytest.mark.parametrize(
    ("row", "failed"),
    [
        (rebuilt(3, state="rejected"), True),
        (rebuilt(3, state="abandoned"), True),
        (rebuilt(3, state="candidate"), False),
        (rebuilt(3, state="rolled_back"), True),
        (rebuilt(3, state="rejected", edits=5), False),  # a night that writes everything live anew
        (night(3, state="rejected", edits=0), False),
    ],
)
def test_only_a_rebuild_that_was_rejected_died_or_was_taken_back_has_failed(row, failed):
    assert (wanted(nights(1, 2), row) == "") is failed


def test_the_last_rebuild_that_failed_counts():
    failures = [rebuilt(number, state="rejected") for number in (1, 5, 3)]
    assert wanted([night(2), night(4)], *failures) == ""
    assert wanted([night(2), night(4), night(6), night(7)], *failures).startswith("2 checkpoints")


def wanted(lineage, *others):
    """What is due every second night, where a ledger knows of others beside the live ones."""
    ledger = SimpleNamespace(
        checkpoints={"tiny": [*lineage, *others]}.__getitem__, lineage={"tiny": lineage}.__getitem__
    )
    workspace = SimpleNamespace(settings=bounds(2), ledger=ledger)
    return policy.wanted(workspace, SimpleNamespace(model="tiny"))
