"""Run part of a model, and watch what passes: the one place that touches a live model's forward.

A block that must not run is replaced for the moment by the identity (or by given states), so that the
model's own code still builds its masks, positions and norms, whatever the family. Everything is put back on
leaving.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from editor.layers import backbone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from editor.model import LanguageModel


class _StopForwardError(Exception):
    """Ends a forward early, with the states it had come to; never leaves this module."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


@contextmanager
def record(
    lm: LanguageModel, *, keys: Sequence[int] = (), states: Sequence[int] = ()
) -> Iterator[tuple[dict[int, Tensor], dict[int, Tensor]]]:
    """Keep what enters the written matrices and what leaves the blocks of the next forward.

    Args:
        lm: the model.
        keys: layers whose key (input of the written matrix) is kept.
        states: layers whose output state is kept.

    Yields:
        Two dictionaries by layer, filled by the forward: keys (batch, tokens, d_k), in some families (OPT)
        flattened to (batch tokens, d_k), and states (batch, tokens, d).
    """
    kept_keys: dict[int, Tensor] = {}
    kept_states: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in keys:
            stack.callback(_keep_input(lm.layers.writer(lm.model, layer), kept_keys, layer).remove)
        for layer in states:
            stack.callback(_keep_output(lm.layers.block(lm.model, layer), kept_states, layer).remove)
        yield kept_keys, kept_states


def _keep_input(module: nn.Module, into: dict[int, Tensor], layer: int) -> RemovableHandle:
    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        into[layer] = args[0]

    return module.register_forward_pre_hook(hook)


def _keep_output(module: nn.Module, into: dict[int, Tensor], layer: int) -> RemovableHandle:
    def hook(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        into[layer] = _state_of(output)

    return module.register_forward_hook(hook)


def _state_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def changed(
    lm: LanguageModel, changes: Mapping[int, Float[Tensor, "d d_k"]], *, rows: int | None = None
) -> Iterator[None]:
    """Run the written matrices as W + Δ, and let gradients reach Δ.

    Args:
        lm: the model.
        changes: Δ by layer.
        rows: rows of a forward whose gradients reach Δ from the first token of each alone; None: from all
            tokens.
    """

    def adding(change: Tensor) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            own = change.to(args[0].dtype)
            if rows is None or not torch.is_grad_enabled():
                return output + torch.nn.functional.linear(args[0], own)
            keys = args[0].reshape(rows, -1, change.shape[1])  # OPT hands over (rows tokens, d_k)
            followed = torch.nn.functional.linear(keys[:, 0], own)
            moved = torch.nn.functional.linear(keys, own.detach())
            return output + torch.cat([followed[:, None], moved[:, 1:]], dim=1).reshape(output.shape)

        return hook

    with ExitStack() as stack:
        for layer, change in changes.items():
            stack.callback(lm.layers.writer(lm.model, layer).register_forward_hook(adding(change)).remove)
        yield


@contextmanager
def _skip_below(lm: LanguageModel, start: int, states: Tensor) -> Iterator[None]:
    """Let blocks below `start` pass their input on; the one just below hands over `states` instead."""
    blocks = [lm.layers.block(lm.model, layer) for layer in range(start)]

    def identity(hidden_states: Tensor, *_args: object, **_kwargs: object) -> Tensor | tuple[Tensor]:
        return (hidden_states,) if lm.layers.tuple_output else hidden_states

    def hand_over(*_args: object, **_kwargs: object) -> Tensor | tuple[Tensor]:
        return (states,) if lm.layers.tuple_output else states

    try:
        for layer, block in enumerate(blocks):
            # An instance attribute shadows the class's forward; deleting it brings the class's back.
            object.__setattr__(block, "forward", hand_over if layer == start - 1 else identity)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def run(
    lm: LanguageModel,
    ids: Int[Tensor, "batch tokens"],
    mask: Int[Tensor, "batch all_tokens"],
    positions: Int[Tensor, "batch tokens"],
    *,
    start: int = 0,
    states: Float[Tensor, "batch tokens d"] | None = None,
    stop_after: int | None = None,
    cache: DynamicCache | None = None,
) -> Float[Tensor, "batch tokens d"]:
    """Run blocks `start` to `stop_after` (both included) of the model.

    Args:
        lm: the model.
        ids: token ids (only looked up, not used, when `start` > 0).
        mask: 1 for real tokens, over the cached tokens and the new ones.
        positions: position of each new token in its text.
        start: first block to run; needs `states` when > 0.
        states: input of block `start`.
        stop_after: last block to run; None runs to the end.
        cache: keys and values of earlier tokens; grows in place.

    Returns:
        States after the final norm, or after `stop_after`.
    """
    with ExitStack() as stack:
        if start > 0:
            if states is None:
                raise ValueError("a run that starts above block 0 needs its states")
            stack.enter_context(_skip_below(lm, start, states))
        if stop_after is not None:
            stack.callback(_stop_at(lm.layers.block(lm.model, stop_after)).remove)
        try:
            output = backbone(lm.model)(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        except _StopForwardError as stopped:
            return stopped.states
    hidden: Tensor = output.last_hidden_state
    return hidden


def _stop_at(module: nn.Module) -> RemovableHandle:
    def hook(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        raise _StopForwardError(_state_of(output))

    return module.register_forward_hook(hook)


def cache_of(lm: LanguageModel, stored: Mapping[int, tuple[Tensor, Tensor]]) -> DynamicCache:
    """Build a cache that holds the given keys and values, and nothing but a length below them.

    Args:
        lm: the model.
        stored: keys and values by layer, of one layer at least, each (batch, heads, length, width). They are
            not changed by a forward.

    Returns:
        A fresh cache.
    """
    reference = next(iter(stored.values()))[0]
    # The masks read the cached length from the first layer; layers that are skipped hold one shared zero.
    empty = reference.new_zeros(()).expand(len(reference), 1, reference.shape[2], 1)
    return DynamicCache([stored.get(layer, (empty, empty)) for layer in range(lm.layers.count)])


def padded(
    rows: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "rows tokens"], Int[Tensor, "rows tokens"], Int[Tensor, "rows tokens"]]:
    """Pad token rows on the right.

    Args:
        rows: token ids.
        device: where to put the result.

    Returns:
        Ids (0 where padded), mask and positions.
    """
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(list(row), dtype=torch.long)
        mask[number, : len(row)] = 1
    positions = torch.arange(longest).expand(len(rows), -1).contiguous()
    return ids.to(device), mask.to(device), positions.to(device)
