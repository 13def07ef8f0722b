"""Errors of the flows.

    FlowError
    ├── SettingsError            a FACTSYNC_ variable does not fit
    ├── ForeignPackageError      one of our import names belongs to another distribution
    ├── BurstError               a night changes too much; a person must look
    ├── GateError                the candidate failed a gate; yesterday's model stays
    ├── BackfillInputError       a backfill's parameters make no sense together
    ├── EvaluationInputError     an evaluation's parameters make no sense together
    ├── CheckpointInputError     a checkpoint is named that the step does not take
    ├── CandidateWaitsError      a candidate waits for a person; no other can be made
    ├── NoCandidateError         no candidate waits for a decision
    ├── NotCarriedError          a candidate carries nothing of what a person drops from it
    ├── NothingLiveError         no checkpoint is live, or none was at a moment
    ├── UnknownModelNameError    the ledger does not know the model; no sync has run
    ├── UnknownSubjectError      nothing was ever edited about that subject
    ├── OutputExistsError        what a command would write is there already
    ├── OtherWeightsError        base and changes do not add up to the weights that were recorded
    └── ServerStartError         a local server did not come up

`exit_code` is what the command line returns for the error; `docs/operate.md` lists them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class FlowError(Exception):
    """Base of all errors raised in `flows`."""

    exit_code = 1


class SettingsError(FlowError):
    """A setting has a value that does not fit."""

    exit_code = 2


class ForeignPackageError(FlowError):
    """One of the import names kb, editor, storage, flows resolves to someone else's package."""

    exit_code = 2


class BurstError(FlowError):
    """The night changes more than the burst guard lets through unseen."""

    exit_code = 5


class GateError(FlowError):
    """A candidate checkpoint failed at least one gate; the model in use is unchanged."""

    exit_code = 5


class BackfillInputError(FlowError):
    """A backfill's parameters make no sense together."""

    exit_code = 2


class EvaluationInputError(FlowError):
    """An evaluation's parameters make no sense together."""

    exit_code = 2


class CheckpointInputError(FlowError):
    """A checkpoint is named that the step does not take."""

    exit_code = 2


class CandidateWaitsError(FlowError):
    """A candidate waits for a person; until then no other checkpoint can be made."""

    exit_code = 5


class NoCandidateError(FlowError):
    """No candidate waits for a decision."""

    exit_code = 2


class NotCarriedError(FlowError):
    """A candidate carries no edit of a relation or item that a person drops from it."""

    exit_code = 2


class NothingLiveError(FlowError):
    """No checkpoint is live, or none was at the moment asked for: the model is the base itself."""

    exit_code = 2


class UnknownModelNameError(FlowError):
    """The ledger does not know the model: no sync has run in this home."""

    exit_code = 2


class UnknownSubjectError(FlowError):
    """Nothing was ever edited about that subject."""

    exit_code = 2


class OutputExistsError(FlowError):
    """What a command would write is there already."""

    exit_code = 2


class OtherWeightsError(FlowError):
    """Base model and changes do not add up to the weights that a checkpoint was recorded with.

    Attributes:
        checkpoint: its digest.
        names: of the weights that differ.
    """

    def __init__(self, checkpoint: str, names: Sequence[str]) -> None:
        self.checkpoint = checkpoint
        self.names = tuple(names)
        super().__init__(
            f"Base model and changes do not add up to the weights of checkpoint {checkpoint[:12]} "
            f"({', '.join(names)} differ): restore the folder of the base model."
        )


class ServerStartError(FlowError):
    """A local server (Prefect, SPARQL) did not come up in time."""

    exit_code = 3
