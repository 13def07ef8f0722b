"""What the steps beside the target states cost, on a tiny model: counts are right, and both solves agree."""

from __future__ import annotations

import torch

from benchmarks import editor_costs
from tests.unit.editor import tiny


def test_operations_of_a_product_are_counted() -> None:
    """Two a multiplication that is added."""
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert editor_costs.operations(lambda: a @ b) == 2 * 3 * 5 * 7


def test_keys_take_fewer_operations_than_whole_passes() -> None:
    """The more facts come together, the fewer each takes; what is published takes as many."""
    lm = tiny.language_model("llama")
    few, many = (editor_costs.keys(lm, edits=edits) for edits in (4, 16))
    for kind in ("facts of one template", "a template each"):
        assert few[kind]["times_fewer"] > 1
    assert many["a template each"]["times_fewer"] > few["a template each"]["times_fewer"]


def test_a_pass_by_woodbury_is_a_solve_of_everything() -> None:
    """Fewer keys than one is wide, and more."""
    lm = tiny.language_model("llama")
    for edits in (7, 100):
        assert editor_costs.solving(lm, edits=edits)["difference"] < 1e-9
