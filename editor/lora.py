"""LoRA fine-tuning (Hu et al., ICLR 2022, arXiv 2106.09685): what a user would pick instead of an editor.

    W x + (alpha / r) B A x,       A (r, d_in) random, B (d_out, r) zero at the start

The adapter is made and merged by the `peft` library; AdamW on the facts until they are learnt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from editor.errors import MissingLibraryError
from editor.losses import descend, lines
from editor.method import WeightMethod

if TYPE_CHECKING:
    from collections.abc import Sequence

    from editor.progress import Progress
    from editor.requests import EditRequest

RANK, ALPHA = 8, 16
RATE = 1e-3
EPOCHS = 30
ROWS = 16
STOP_LOSS = 1e-2


def _peft() -> Any:  # noqa: ANN401 - an optional module
    try:
        import peft  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise MissingLibraryError(
            "The method lora needs the package `peft`: run `pip install -e '.[peft]'`, "
            "or choose another method.",
            package="peft",
        ) from error
    return peft


class Lora(WeightMethod):
    """An adapter on every linear layer of the blocks, trained on a batch and merged."""

    def written(self) -> list[str]:
        """Return all matrices of the blocks."""
        prefix = f"{self.lm.layers.blocks}."
        return [
            name
            for name, weight in self.lm.model.named_parameters()
            if name.startswith(prefix) and weight.ndim == 2  # noqa: PLR2004 - a matrix has two axes
        ]

    def teach(self, requests: Sequence[EditRequest], progress: Progress | None) -> None:
        """Train an adapter on one batch and merge it."""
        peft, model = _peft(), self.lm.model
        names = [name.removesuffix(".weight") for name in self.written()]
        config = peft.LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=names, fan_in_fan_out=self.lm.layers.transposed
        )
        with torch.random.fork_rng():
            torch.manual_seed(self.resources.seed)
            wrapped = peft.get_peft_model(model, config)
        try:
            self._descend(wrapped, requests, progress)
        finally:
            wrapped.merge_and_unload()
            model.requires_grad_(requires_grad=False)
            model.eval()
            if hasattr(model, "peft_config"):
                del model.peft_config

    def _descend(
        self, wrapped: torch.nn.Module, requests: Sequence[EditRequest], progress: Progress | None
    ) -> None:
        weights = [weight for weight in wrapped.parameters() if weight.requires_grad]
        descend(
            self.lm,
            lines(self.lm, requests),
            torch.optim.AdamW(weights, lr=RATE),
            passes=EPOCHS,
            at_once=ROWS,
            stop_loss=STOP_LOSS,
            seed=self.resources.seed,
            progress=progress,
        )
