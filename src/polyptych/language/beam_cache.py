"""Keys and values of beams that share their prompt: the prompt's part is copied once, at the start.

transformers' cache copies everything twice in each step of a beam search: to append the new token,
and to follow the beams. But the beams of an example only ever differ behind its prompt, which is
long here (hundreds of visual tokens). So new tokens are written into spare room, and only what was
generated is reordered. (One beam saves the first of the two copies.) Works for every decoder whose
cache has transformers' ordinary layers.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 64
"""New tokens that fit before the cache is moved to a larger place."""


def share_prompt(cache: Cache, copies: int) -> None:
    """Give each of an example's ``copies`` beams the cache of its prompt, in place.

    Layers of other kinds (sliding windows, recurrent states) are repeated the usual way.
    """
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and not cache.offloading:
            cache.layers[index] = SharedPromptLayer(layer, copies)
        elif copies > 1:
            layer.batch_repeat_interleave(copies)  # type: ignore[union-attr]  # all but dummies


class SharedPromptLayer(DynamicLayer):
    """One layer's cache during a beam search, rows in the order example, beam.

    Args:
        prompt: The layer's cache after the prompts were read, one row per example.
        copies: Beams per example.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, prompt: DynamicLayer, copies: int) -> None:
        super().__init__()
        keys, values = prompt.keys, prompt.values
        assert keys is not None and values is not None  # the prompts were read
        self.lazy_initialization(keys, values)
        self.prompt_length = keys.shape[2]
        self._key_room = _with_room(keys, copies)
        self._value_room = _with_room(values, copies)
        self._show(self.prompt_length)

    def _show(self, length: int) -> None:
        self.keys, self.values = self._key_room[:, :, :length], self._value_room[:, :, :length]

    def update(
        self,
        key_states: Float[Tensor, "C heads new D"],
        value_states: Float[Tensor, "C heads new D"],
        *args: object,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        """Append the newest tokens and return all keys and values."""
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if end > self._key_room.shape[2]:
            self._key_room, self._value_room = _with_room(self.keys), _with_room(self.values)
        self._key_room[:, :, start:end] = key_states
        self._value_room[:, :, start:end] = value_states
        self._show(end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Int[Tensor, " C"]) -> None:
        """Row i goes on from row ``beam_idx[i]``, which belongs to the same example."""
        for states in (self.keys, self.values):
            generated = states[:, :, self.prompt_length :]
            generated.copy_(generated.index_select(0, beam_idx.to(states.device)))


def _with_room(
    states: Float[Tensor, "R heads L D"], copies: int = 1
) -> Float[Tensor, "C heads room D"]:
    """The states at the front of a longer tensor, each row ``copies`` times (C = R x copies)."""
    rows, heads, length, width = states.shape
    room = states.new_empty(rows * copies, heads, length + max(ROOM, length // 2), width)
    room[:, :, :length].unflatten(0, (rows, copies)).copy_(states[:, None])
    return room
