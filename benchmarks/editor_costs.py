"""What the steps beside the target states cost: keys and residuals, the solve, second moments, memory.

    python -m benchmarks.editor_costs MODEL_FOLDER keys [--edits 50]
    python -m benchmarks.editor_costs MODEL_FOLDER solve [--edits 300]
    python -m benchmarks.editor_costs MODEL_FOLDER moments TEXT [--tokens 60000]
    python -m benchmarks.editor_costs MODEL_FOLDER memory [--edits 500] [--whole]

`keys` counts floating-point operations, which no other process disturbs. The published code asks the whole
model, to its logits, for the keys of six contexts and for the state of one, anew at each edited layer.
`solve` takes one layer of the model's shape with as many random keys live as come: factored once and solved
by Woodbury, beside a solve of everything as the published code has it.
`moments` beside one whole pass a layer over the same text. `memory` edits facts of five prompts each and
prints the process's peak: in a few steps of target states and two of refinement, or in all of the preset's.
"""

from __future__ import annotations

import argparse
import json
import resource
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.clock import Clock
from benchmarks.editor_speed import PREFIXES, TEMPLATES, facts
from editor import activations, memit
from editor.allocator import spare_memory
from editor.keys import KeyReader
from editor.model import LanguageModel
from editor.moments import Moments
from editor.presets import preset_for
from editor.requests import plan
from editor.solve import Exchange, Standing, low_rank_update, normal_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from editor.requests import EditRequest

_TIMES = 5


def operations(work: Callable[[], object]) -> int:
    """Count the floating-point operations of matrix products and attention."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


@torch.no_grad()
def whole_model(lm: LanguageModel, texts: Sequence[Sequence[int]]) -> None:
    """Run texts one at a time to their logits."""
    for text in texts:
        lm.model(input_ids=torch.tensor([list(text)]))


def keys(lm: LanguageModel, *, edits: int) -> dict[str, object]:
    """Compare the operations of keys and residuals, over all edited layers."""
    one = facts(edits)
    several = [
        replace(fact, prompts=(TEMPLATES[number % len(TEMPLATES)],)) for number, fact in enumerate(one)
    ]
    return {
        "edits": edits,
        "facts of one template": _operations_of(lm, one),
        "a template each": _operations_of(lm, several),
    }


def _operations_of(lm: LanguageModel, asked: Sequence[EditRequest]) -> dict[str, float]:
    layers = preset_for(lm).layers
    units = plan(lm, asked, prefixes=PREFIXES, kl_template=None)
    columns = [column for unit in units for column in unit.columns]
    # The same contexts, to the end of the prompt as the published code runs them.
    prompts = [row.ids[: row.first + 1] for unit in units for row in unit.rows]
    bare = [unit.rows[0].ids[: unit.rows[0].first + 1] for unit in units]

    def published_a_layer() -> None:
        whole_model(lm, prompts)
        whole_model(lm, bare)

    def ours() -> None:
        reader = KeyReader(lm, columns, layers)
        for layer in layers:
            reader.read(layer)

    theirs, found = len(layers) * operations(published_a_layer), operations(ours)
    return {
        "published_gflop_per_edit": round(theirs / len(asked) / 1e9, 2),
        "ours_gflop_per_edit": round(found / len(asked) / 1e9, 3),
        "times_fewer": round(theirs / found, 1),
    }


def solving(lm: LanguageModel, *, edits: int) -> dict[str, object]:
    """Compare a pass by Woodbury beside what stands all night with one that solves everything."""
    d, d_k = lm.layers.d, lm.layers.d_k
    generator = torch.Generator().manual_seed(0)
    text, live, coming = (torch.randn(d_k, n, generator=generator).double() for n in (4 * d_k, edits, edits))
    residuals = torch.randn(d, edits, generator=generator).double()
    nothing = torch.zeros(d_k, 0).double()
    C, weight = text @ text.T / text.shape[1], float(edits)
    known = Standing(normal_matrix(C, weight, live))
    asked = Exchange(coming, residuals, nothing, residuals[:, :0], nothing)

    def woodbury() -> Tensor:
        left, right = low_rank_update(known, asked)
        return left @ right

    def primal() -> Tensor:
        everything = normal_matrix(C, weight, torch.cat([live, coming], dim=1))
        return torch.linalg.solve(everything, coming @ residuals.T).T

    def seconds(work: Callable[[], object]) -> float:
        start = Clock()
        for _ in range(_TIMES):
            work()
        return round(start.since().cpu_s / _TIMES, 4)

    found, oracle = woodbury(), primal()
    return {
        "keys": [edits, edits],
        "factored_once_cpu_s": seconds(lambda: Standing(normal_matrix(C, weight, live))),
        "a_pass_cpu_s": seconds(woodbury),
        "a_pass_that_solves_everything_cpu_s": seconds(primal),
        "difference": float((found - oracle).norm() / oracle.norm()),
    }


def moments(lm: LanguageModel, texts: Sequence[str], *, tokens: int) -> dict[str, object]:
    """Compare one streamed pass for all layers with a whole pass a layer."""
    layers = preset_for(lm).layers

    def timed(work: Callable[[], object]) -> dict[str, float]:
        start = Clock()
        work()
        return start.since().shown()

    @torch.no_grad()
    def plain() -> None:
        ids = [row for text in texts for row in lm.tokenizer(text)["input_ids"]][:tokens]
        rows = [ids[start : start + 1000] for start in range(0, len(ids), 1000)]
        for layer in layers:
            total = torch.zeros(lm.layers.d_k, lm.layers.d_k)
            for row in rows:
                with activations.record(lm, keys=[layer]) as (found, _):
                    lm.model(input_ids=torch.tensor([row]))
                k = found[layer].reshape(-1, lm.layers.d_k)
                total += k.T @ k

    return {
        "tokens": tokens,
        "layers": len(layers),
        "ours": timed(lambda: Moments.compute(lm, texts, layers, tokens=tokens, enough=0)),
        "a_whole_pass_a_layer": timed(plain),
    }


def memory(lm: LanguageModel, *, edits: int, whole: bool) -> dict[str, object]:
    """Edit, and say how large the process became."""
    settings = preset_for(lm)
    noise = torch.randn(2 * lm.layers.d_k, lm.layers.d_k)
    # As much text as a home keeps beside them.
    known = Moments.compute(lm, 600 * [12 * "The committee met again. "], settings.layers, enough=0)
    for layer in settings.layers:  # of full rank, as real ones are
        known.matrices[layer] += noise.T @ noise / len(noise)
    loaded = peak_gib()
    if not whole:  # every context is run once at least
        settings = replace(settings, steps=settings.turns, refine_steps=2)
    outcome = memit.edit(lm, facts(edits, TEMPLATES), settings=settings, moments=known)
    refined = sum(report.refined for report in outcome.reports) / edits
    return {
        "edits": edits,
        "steps_of_refinement": round(refined, 1),
        "peak_gib_loaded": loaded,
        "peak_gib": peak_gib(),
    }


def peak_gib() -> float:
    """Return the most memory that this process ever held."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2, 2)


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("what", choices=("keys", "solve", "moments", "memory"))
    parser.add_argument("text", nargs="?", type=Path)
    parser.add_argument("--edits", type=int)
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--whole", action="store_true", help="memory: all steps of the preset")
    asked = parser.parse_args()
    spare_memory()
    lm = LanguageModel.load(asked.model)
    if asked.what == "keys":
        result = keys(lm, edits=asked.edits or 50)
    elif asked.what == "solve":
        result = solving(lm, edits=asked.edits or 300)
    elif asked.what == "memory":
        result = memory(lm, edits=asked.edits or 500, whole=asked.whole)
    else:
        result = moments(lm, asked.text.read_text().split("\n\n"), tokens=asked.tokens)
    print(json.dumps({"threads": torch.get_num_threads(), **result}, indent=1))


if __name__ == "__main__":
    main()
