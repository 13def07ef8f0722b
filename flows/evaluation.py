"""An evaluation from the interface: `flows.evaluate` with a form, and its table as an artifact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from prefect import flow
from pydantic import WithJsonSchema

from editor.methods import METHODS
from flows import artifacts, report
from flows.asked import LEDGER, Asked
from flows.evaluate import evaluate as run
from flows.params import EditLimit  # noqa: TC001 - Prefect reads the types of parameters
from flows.settings import Settings
from flows.states import Ending, named_states

if TYPE_CHECKING:
    from pathlib import Path

MethodList = Annotated[
    list[str],
    WithJsonSchema(
        {"type": "array", "items": {"type": "string", "enum": list(METHODS)}, "uniqueItems": True}
    ),
]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What an evaluation found, in short.

    Attributes:
        experiments: how many methods on how many numbers of edits.
        page: the report.
    """

    experiments: int
    page: Path

    @property
    def ending(self) -> Ending:
        """How it ended."""
        return Ending("Evaluated", f"{self.experiments} experiments; the report is {self.page}.")


@flow(name="evaluate")
@named_states
def evaluate(
    data: str = LEDGER,
    methods: MethodList = ["memit"],  # noqa: B006 - a form needs a list to begin with; it is never changed
    edits: EditLimit = 50,
    batches: EditLimit = 1,
    seed: int = 0,
) -> Evaluated:
    """Compare ways of editing on a data set. Started again with the same values it goes on where it was.

    Args:
        data: A .json or .jsonl file, a data set's hub name, or ledger for the live facts of this home.
        methods: Ways of editing; the model without edits is always measured too.
        edits: How many facts each method is taught.
        batches: Cut the edits into so many batches; recall of the first is asked after each.
        seed: Of all that is drawn.
    """
    settings = Settings.read()
    asked = Asked(
        data=data.strip(), methods=tuple(dict.fromkeys(methods)), edits=(edits,), batches=batches, seed=seed
    )
    folder = settings.home / "evaluation"
    found = run(settings, asked, folder)
    pages = report.write(found, folder)
    artifacts.evaluation(report.markdown(found))
    return Evaluated(len(found.results), pages.html)
