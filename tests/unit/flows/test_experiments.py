"""The folder of an experiment gives back what it was given."""

from __future__ import annotations

import torch

from editor.metrics import Answer, Writing
from flows.experiments import Experiment, ExperimentFolder


def experiment(**more: object) -> Experiment:
    return Experiment(**{"method": "rome", "relations": (), "batches": (), "seed": 0, "basis": {}, **more})


def test_weights_and_a_large_state_come_back(tmp_path) -> None:
    """A state may be hundreds of megabytes: it does not go into the file's header."""
    folder = ExperimentFolder(tmp_path, experiment())
    assert folder.taught() is None
    state = bytes(range(256)) * 800_000
    folder.keep(1, {"a.weight": torch.ones(2, 3)}, b"", 0.5)
    folder.keep(2, {"a.weight": torch.full((2, 3), 2.0)}, state, 1.25)
    batch, weights, found, seconds = folder.taught() or (0, {}, b"", 0.0)
    assert (batch, seconds, found == state) == (2, 1.25, True)
    assert weights["a.weight"].tolist() == [[2.0] * 3] * 2
    assert len(list(folder.path.glob("taught-*"))) == 1
    folder.finish({"method": "rome"})
    assert folder.result() == {"method": "rome"}
    assert not list(folder.path.glob("taught-*"))


def test_rows_come_back(tmp_path) -> None:
    """What was not measured stays None, not a number."""
    folder = ExperimentFolder(tmp_path, experiment())
    answers = [
        Answer("1", "P6", "efficacy", "p", "a", "b", 0.5, 0.25, 2, 1, "a b"),
        Answer("1", "P6", "neighbourhood", "p", "a", None, 0.5, None, 2, 1, None),
    ]
    folder.keep_answers(1, 0, answers, {"1": 1})
    assert folder.answers(1, 0) == answers
    assert folder.answers(1, 1) is None
    written = [Writing("1", "P6", ("one", "two"), 612.5, None)]
    folder.keep_writings(0, written)
    assert folder.writings(0) == written
    assert folder.tables("answers")[0].num_rows == 2


def test_the_key_is_all_that_numbers_depend_on() -> None:
    """Another seed, basis, method or choice of relations is another experiment."""
    keys = {
        experiment(**more).key
        for more in ({}, {"seed": 1}, {"basis": {"model": "x"}}, {"method": "memit"}, {"relations": ("P6",)})
    }
    assert len(keys) == 5
    assert experiment().key == experiment().key
