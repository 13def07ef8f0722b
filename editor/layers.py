"""The only home of architecture facts: where the blocks are, and which matrix of a block MEMIT writes.

MEMIT changes the matrix that maps a block's feed-forward activation (the key k, d_k wide) to its
contribution to the residual stream (the value v, d wide): ``c_proj`` in GPT-2, ``fc_out`` in GPT-J,
``down_proj`` in Llama. A new family is one row of `ARCHITECTURES`; a model without a row is searched by
shape.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from editor.errors import UnknownArchitectureError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float
    from torch import Tensor

log = logging.getLogger(__name__)

_LLAMA_LIKE = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "olmo", "phi3", "stablelm", "granite", "smollm3", "cohere",
    "cohere2", "ernie4_5", "seed_oss", "glm",
)  # fmt: skip
_POST_NORM = {
    "gemma2": "post_feedforward_layernorm",
    "gemma3_text": "post_feedforward_layernorm",
    "olmo2": "post_feedforward_layernorm",
    "olmo3": "post_feedforward_layernorm",
    "glm4": "post_mlp_layernorm",
}


_NORM_BEHIND = ("post_feedforward", "post_mlp")
_TINY = 1e-6


@dataclass(frozen=True, slots=True)
class Architecture:
    """Where one family keeps what MEMIT needs, as dotted paths.

    Attributes:
        blocks: the list of transformer blocks, from the causal LM.
        mlp_out: the feed-forward output matrix, from a block.
        post_norm: the norm between that matrix and the residual stream, from a block; empty if there is none.
    """

    blocks: str
    mlp_out: str
    post_norm: str = ""


ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture("transformer.h", "mlp.c_proj"),
    "gpt_bigcode": Architecture("transformer.h", "mlp.c_proj"),
    "gptj": Architecture("transformer.h", "mlp.fc_out"),
    "codegen": Architecture("transformer.h", "mlp.fc_out"),
    "gpt_neo": Architecture("transformer.h", "mlp.c_proj"),
    "gpt_neox": Architecture("gpt_neox.layers", "mlp.dense_4h_to_h"),
    "opt": Architecture("model.decoder.layers", "fc2"),
    "falcon": Architecture("transformer.h", "mlp.dense_4h_to_h"),
    "phi": Architecture("model.layers", "mlp.fc2"),
    "starcoder2": Architecture("model.layers", "mlp.c_proj"),
    **{name: Architecture("model.layers", "mlp.down_proj") for name in _LLAMA_LIKE},
    **{name: Architecture("model.layers", "mlp.down_proj", norm) for name, norm in _POST_NORM.items()},
}


@dataclass(frozen=True, slots=True)
class LayerMap:
    """The editable matrices of one model.

    Attributes:
        family: the model type, as its config says.
        blocks: dotted path of the block list.
        mlp_out: dotted path of the written matrix inside a block.
        count: number of blocks.
        d: width of the residual stream.
        d_k: width of a key (the input of the written matrix).
        post_norm: dotted path of the norm after the written matrix inside a block, or empty.
        multiplier: factor on the block's contribution (Granite), 1 elsewhere.
        transposed: the weight is stored (d_k, d), as GPT-2's ``Conv1D`` does.
        tuple_output: a block returns a tuple whose first entry is the hidden state.
    """

    family: str
    blocks: str
    mlp_out: str
    count: int
    d: int
    d_k: int
    post_norm: str
    multiplier: float
    transposed: bool
    tuple_output: bool

    def block(self, model: nn.Module, layer: int) -> nn.Module:
        """Return block `layer`."""
        return model.get_submodule(f"{self.blocks}.{layer}")

    def writer(self, model: nn.Module, layer: int) -> nn.Module:
        """Return the module whose weight MEMIT writes in block `layer`."""
        return model.get_submodule(f"{self.blocks}.{layer}.{self.mlp_out}")

    def weight_name(self, layer: int) -> str:
        """Return the state-dict name of the written weight of block `layer`."""
        return f"{self.blocks}.{layer}.{self.mlp_out}.weight"

    def matrix(self, model: nn.Module, layer: int) -> Float[Tensor, "d d_k"]:
        """Return the written weight as (d, d_k), a view whatever the storage."""
        weight = self.writer(model, layer).weight
        if not isinstance(weight, torch.Tensor):
            raise UnknownArchitectureError(f"{self.weight_name(layer)} is not a tensor.", layer=layer)
        return weight.data.T if self.transposed else weight.data

    def before_norm(
        self, model: nn.Module, layer: int, values: Float[Tensor, "n d"], residuals: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n d"]:
        """Turn wanted changes of the residual stream into changes of the written matrix's output.

        They are the same but for two kinds of family: one scales its contribution (Granite), one normalises
        it (Gemma 2 and 3, OLMo 2). A norm gives gain · y / rms(y), blind to the length of y; so the output is
        asked for in the direction of (norm(y) + r) / gain, at the length it had. What a norm cannot give is
        left to the next layer.

        Args:
            model: the model.
            layer: which block.
            values: outputs y of the written matrix as they are.
            residuals: wanted changes r of the stream.

        Returns:
            Wanted changes of y.
        """
        residuals = residuals / self.multiplier
        if not self.post_norm:
            return residuals
        norm = model.get_submodule(f"{self.blocks}.{layer}.{self.post_norm}")
        gain = norm(torch.ones_like(values[:1]))
        direction = (norm(values) + residuals) / torch.where(gain.abs() > _TINY, gain, torch.ones_like(gain))
        length = values.norm(dim=1, keepdim=True) / direction.norm(dim=1, keepdim=True).clamp(min=_TINY)
        change: Tensor = direction * length - values
        return change

    @classmethod
    def discover(cls, model: nn.Module) -> LayerMap:
        """Find the editable matrices of a causal LM: by its row in the table, else by shape.

        Args:
            model: a `transformers` causal LM.

        Returns:
            The map.

        Raises:
            UnknownArchitectureError: neither the table nor the shapes tell.
        """
        kind = str(getattr(model.config, "model_type", "unknown"))
        row = ARCHITECTURES.get(kind) or _by_shape(model)
        if row is None:
            raise UnknownArchitectureError(
                f"No feed-forward output matrix found in a model of type {kind!r}: add a row for it to "
                "ARCHITECTURES in editor/layers.py (path of the blocks, path of the matrix inside a block).",
                model_type=kind,
            )
        try:
            blocks = model.get_submodule(row.blocks)
            writer = model.get_submodule(f"{row.blocks}.0.{row.mlp_out}")
        except AttributeError as error:
            raise UnknownArchitectureError(
                f"A model of type {kind!r} has no {row.blocks}.0.{row.mlp_out}: correct its row in "
                "ARCHITECTURES "
                "in editor/layers.py.",
                model_type=kind,
            ) from error
        transposed = isinstance(writer, Conv1D)
        weight = writer.weight
        if not isinstance(weight, torch.Tensor) or weight.ndim != 2:  # noqa: PLR2004 - a matrix has two axes
            raise UnknownArchitectureError(f"{row.mlp_out} of {kind!r} is not a matrix.", model_type=kind)
        names = {f"{row.blocks}.{name}.{row.mlp_out}.weight" for name, _ in blocks.named_children()}
        shapes = {name: parameter.shape for name, parameter in model.named_parameters() if name in names}
        unlike = sorted(name for name in names if shapes.get(name) != weight.shape)
        if unlike:
            raise UnknownArchitectureError(
                f"The blocks of a model of type {kind!r} are not alike: {unlike[0]} is not what the first "
                "block has (a mixture of experts?), and such a model cannot be edited.",
                model_type=kind,
            )
        d, d_k = weight.shape[::-1] if transposed else weight.shape
        return cls(
            family=kind,
            blocks=row.blocks,
            mlp_out=row.mlp_out,
            count=len(list(blocks.children())),
            d=int(d),
            d_k=int(d_k),
            post_norm=row.post_norm,
            multiplier=float(getattr(model.config, "residual_multiplier", 1.0)),
            transposed=transposed,
            tuple_output=_returns_tuple(model, row),
        )


def logits_of(model: nn.Module, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n vocab"]:
    """Map final hidden states (after the last norm) to logits as the model's own forward does.

    Args:
        model: a causal LM.
        hidden: states as the backbone returns them.

    Returns:
        Logits, with the family's scale and soft cap applied.
    """
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    logits: Tensor = head(hidden)
    config = model.config
    for scale_name, divides in (("logit_scale", False), ("logits_scaling", True)):
        scale = getattr(config, scale_name, None)
        if scale is not None:
            logits = logits / scale if divides else logits * scale
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def backbone(model: nn.Module) -> nn.Module:
    """Return the part of a causal LM below its head."""
    base: nn.Module = model.base_model  # type: ignore[assignment]
    return base


def _by_shape(model: nn.Module) -> Architecture | None:
    """Find the longest list of like blocks, and in a block the one narrowing matrix outside attention."""
    hidden = getattr(model.config, "hidden_size", None)
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    for name, blocks in sorted(lists, key=lambda item: -len(item[1])):
        if len({type(block) for block in blocks}) != 1:
            continue
        found = [path for path, width in _narrowing(blocks[0], hidden) if width > (hidden or 0)]
        if len(found) == 1:
            norms = [child for child, _ in blocks[0].named_children() if child.startswith(_NORM_BEHIND)]
            log.info("found the feed-forward output by shape: %s.*.%s", name, found[0])
            return Architecture(name, found[0], norms[0] if norms else "")
    return None


def _narrowing(block: nn.Module, hidden: int | None) -> Iterator[tuple[str, int]]:
    for path, module in block.named_modules():
        weight = getattr(module, "weight", None)
        if (
            not isinstance(module, nn.Linear | Conv1D)
            or weight is None
            or any(word in path for word in ("attn", "attention", "expert"))
        ):
            continue
        d, d_k = weight.shape[::-1] if isinstance(module, Conv1D) else weight.shape
        if d == hidden:
            yield path, int(d_k)


class _SeenError(Exception):
    """Ends the probe forward."""


def _returns_tuple(model: nn.Module, row: Architecture) -> bool:
    seen: list[bool] = []

    def note(_module: nn.Module, _args: object, output: object) -> None:
        seen.append(isinstance(output, tuple))
        raise _SeenError

    handle = model.get_submodule(f"{row.blocks}.0").register_forward_hook(note)
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            ids = torch.zeros((1, 1), dtype=torch.long, device=device)
            backbone(model)(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except _SeenError:
        pass
    finally:
        handle.remove()
    return bool(seen and seen[0])
