"""A person's word on a candidate counts as it is given, or not at all."""

import pytest

from flows.decide import reject
from flows.errors import NotCarriedError
from flows.workspace import opened_model


@pytest.mark.parametrize(
    ("dropped", "missing"),
    [
        ({"drop_relations": ["P35"]}, "P35"),
        ({"drop_subjects": ["Q2", "Q3"]}, "Q3"),
        ({"drop_relations": ["P6"], "drop_subjects": ["Q3"]}, "Q3"),
    ],
)
def test_what_a_candidate_does_not_carry_cannot_be_dropped(waiting, dropped, missing):
    with pytest.raises(NotCarriedError, match=f"no edits of {missing}, "):
        reject.fn(**dropped)
    with opened_model(waiting) as (ws, model):
        assert ws.ledger.status(model).open_checkpoint.state == "candidate"


def test_what_it_carries_is_dropped(waiting):
    assert reject.fn(drop_relations=["p6"], drop_subjects=["q2"]).requeued == 0
