"""Gates compare measured numbers with bounds, and never let an unmeasurable model through."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.gates import NOTES, Metrics, advice, judge
from flows.settings import GateThresholds
from storage.types import dump

GOOD = Metrics(1.0, 0.9, 0.9, 0.7, 0.1, 0.0, 1.0, 0.9, 0.95, 0.7, 23.5, 23.0)


def failed(metrics):
    return {gate.name for gate in judge(metrics, GateThresholds()) if not gate.passed}


def with_(**values):
    return Metrics(**{name: values.get(name, getattr(GOOD, name)) for name in Metrics.__dataclass_fields__})


def test_a_good_night_passes():
    assert failed(GOOD) == set()


def test_each_gate_fails_alone():
    assert failed(with_(efficacy=0.5)) == {"efficacy"}
    assert failed(with_(exact=0.1)) == {"exact"}
    assert failed(with_(heldback=0.1)) == {"heldback"}
    assert failed(with_(retention=0.9)) == {"retention"}
    assert failed(with_(neighbours=0.5)) == {"neighbours"}
    assert failed(with_(perplexity=30.0)) == {"perplexity"}


def test_nothing_to_protect_on_the_first_night():
    assert failed(with_(retention=None, neighbours=None)) == set()


def test_a_perplexity_that_is_no_number_fails():
    assert failed(with_(perplexity=math.nan)) == {"perplexity"}
    assert failed(with_(perplexity=math.inf)) == {"perplexity"}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_enters_the_ledger_as_none(value):
    found = with_(perplexity=value).to_json()
    assert (found["perplexity"], found["perplexity_rise"], found["exact"]) == (None, None, 0.9)
    dump(found)


@given(st.floats(0, 1))
def test_efficacy_gate_is_a_threshold(value):
    assert ("efficacy" in failed(with_(efficacy=value))) == (value < GateThresholds().efficacy)


def test_a_gate_reads_as_one_line():
    lines = [str(gate) for gate in judge(with_(retention=None), GateThresholds())]
    assert "retention not measured (bound 0.950): passed" in lines
    assert "efficacy 1.000 (bound 0.950): passed" in lines


def test_every_gate_says_what_it_rests_on_and_what_to_do():
    gates = judge(GOOD, GateThresholds())
    assert {gate.name for gate in gates} == set(NOTES)
    assert all(gate.note and gate.note.evidence and gate.note.advice for gate in gates)
    assert not advice(gates)
    said = advice(judge(with_(retention=0.1, exact=0.1), GateThresholds()))
    assert said.startswith("Exact: look for long or unusual labels")
    assert "Retention: `factsync rebuild`" in said
