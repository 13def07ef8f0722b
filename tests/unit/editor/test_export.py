"""Casts and adapters: what is counted, what is lost, and that peft gives the same answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

from editor import delta, export
from editor.delta import Delta, LowRank
from editor.errors import NothingToExportError
from tests.unit.editor import tiny
from tests.unit.editor.conftest import LAYERS

if TYPE_CHECKING:
    from pathlib import Path

    from editor.model import LanguageModel


def change_of(lm: LanguageModel, rank: int, *, seed: int = 0, scale: float = 0.02) -> Delta:
    """A random change of known rank."""
    torch.manual_seed(seed)
    return Delta(
        {
            lm.layers.weight_name(layer): LowRank.rounded(
                torch.randn(lm.layers.d, rank) * scale, torch.randn(rank, lm.layers.d_k)
            )
            for layer in LAYERS
        }
    )


def test_an_adapter_of_full_rank_is_exact_and_no_larger_than_needed(lm: LanguageModel) -> None:
    """Two changes of rank 3 and 4 make an adapter of rank 7 that is their sum."""
    changes = export.total([change_of(lm, 3), change_of(lm, 4, seed=1)])
    made = export.adapter(changes, dtype=torch.float32)
    assert (made.rank, made.exact) == (7, True)
    for name, (B, A) in made.factors.items():
        torch.testing.assert_close(B.double() @ A.double(), changes[name], rtol=0, atol=1e-7)


def test_a_truncated_adapter_states_the_smallest_possible_error(lm: LanguageModel) -> None:
    """By Eckart and Young: the root of the squares of the singular values left out."""
    changes = export.total([change_of(lm, 8)])
    made = export.adapter(changes, rank=5, dtype=torch.float32)
    assert made.rank == 5
    assert not made.exact
    tails = [torch.linalg.svdvals(one) for one in changes.values()]
    wanted = max(float(values[5:].norm() / values.norm()) for values in tails)
    assert made.error == pytest.approx(wanted, rel=1e-5)
    assert export.adapter(changes, dtype=torch.bfloat16).error > 1e-4, "a cast counts as error too"


def test_nothing_changed_makes_no_adapter() -> None:
    """An adapter of nothing is refused with a reason."""
    with pytest.raises(NothingToExportError, match="changes nothing"):
        export.adapter({"w": torch.zeros(3, 4, dtype=torch.float64)}, dtype=torch.float32)
    with pytest.raises(NothingToExportError):
        export.adapter({}, dtype=torch.float32)


def test_what_a_cast_rounds_away_is_counted(lm: LanguageModel) -> None:
    """No cast loses nothing; the smaller the change and the shorter the mantissa, the more is lost."""
    originals = delta.copies(lm, LAYERS)
    delta.apply(lm, change_of(lm, 2, scale=1e-4))
    full, half, short = (
        export.rounded_away(lm, originals, dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)
    )
    assert full.lost == 0
    assert full.changed == half.changed == short.changed > 0
    assert 0 < half.share < short.share < 1
    assert export.Rounding(0, 0).share == 0


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2", "gpt_neox", "phi"])
def test_peft_gives_the_same_answers(family: str, tmp_path: Path) -> None:
    """The base with the adapter says what the edited model says, for both ways of storing a weight."""
    peft = pytest.importorskip("peft")
    edited, base = tiny.language_model(family), tiny.language_model(family)
    change = change_of(edited, 6, scale=0.1)
    delta.apply(edited, change)
    made = export.adapter(export.total([change]), dtype=torch.float32)
    for name, content in export.adapter_files(made, base="base", transposed=edited.layers.transposed).items():
        (tmp_path / name).write_bytes(content)
    loaded = peft.PeftModel.from_pretrained(base.model, tmp_path)
    ids = torch.tensor([edited.tokenizer("The capital of France is")["input_ids"]])
    plain = tiny.language_model(family)
    with torch.no_grad():
        ours, theirs, before = (one(input_ids=ids).logits for one in (edited.model, loaded, plain.model))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (ours - before).abs().max() > 0.01, "the change must show"
    merged = loaded.merge_and_unload()
    weight = merged.get_submodule(edited.layers.weight_name(LAYERS[0]).removesuffix(".weight")).weight
    reference = edited.layers.writer(edited.model, LAYERS[0]).weight
    torch.testing.assert_close(weight, reference, rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"] == (family == "gpt2")
