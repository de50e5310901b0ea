"""Shots between the two kinds of perceiver: ragged, flat, and kept per datastore entry.

What the Vision and the Language Perceiver make of a shot depends on nothing but the shot, so it can
be computed once per entry of a datastore and joined at will: :class:`ShotCache`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from polyptych.data.collation import Collator
from polyptych.data.conversation import shot_text
from polyptych.data.images import image_hash
from polyptych.errors import PolyptychError
from polyptych.files import write_aside
from polyptych.schema import Example, Message, Shots, TextBlock, shots_of


@dataclass(frozen=True, slots=True)
class ShotTokens:
    """S shots after the Vision and the Language Perceiver, each modality flat over the shots.

    Rows are what the Context Perceiver reads of V_k and T_k: keys and values, W numbers in all.
    """

    vision: Float[Tensor, "N W"]
    """One row per patch of the shots' images."""
    vision_lengths: Int[Tensor, " S"]
    """Rows of each shot; 0 where it has no image."""
    language: Float[Tensor, "M W"]
    """One row per word."""
    language_lengths: Int[Tensor, " S"]
    """Rows of each shot."""

    def __len__(self) -> int:
        return len(self.vision_lengths)

    @classmethod
    def of(cls, shots: Shots) -> ShotTokens | None:
        """Those that a batch brings; None where it brings the shots themselves."""
        if "shot_vision_tokens" not in shots:
            return None
        return cls(
            shots["shot_vision_tokens"],
            shots["shot_vision_lengths"],
            shots["shot_language_tokens"],
            shots["shot_language_lengths"],
        )

    def as_inputs(self) -> Shots:
        """As a batch brings them, beside ``shot_counts``."""
        return Shots(
            shot_vision_tokens=self.vision,
            shot_vision_lengths=self.vision_lengths,
            shot_language_tokens=self.language,
            shot_language_lengths=self.language_lengths,
        )

    def split(self) -> list[ShotTokens]:
        """Each shot by itself, as a datastore keeps it."""
        vision = self.vision.split(self.vision_lengths.tolist())
        language = self.language.split(self.language_lengths.tolist())
        return [
            ShotTokens(
                vision[shot],
                self.vision_lengths[shot : shot + 1],
                language[shot],
                self.language_lengths[shot : shot + 1],
            )
            for shot in range(len(self))
        ]


def join_shots(shots: Sequence[ShotTokens]) -> ShotTokens:
    """Shots from anywhere as those of one batch, in this order; at least one."""
    return ShotTokens(
        torch.cat([shot.vision for shot in shots]),
        torch.cat([shot.vision_lengths for shot in shots]),
        torch.cat([shot.language for shot in shots]),
        torch.cat([shot.language_lengths for shot in shots]),
    )


def pad_ragged(
    flat: Tensor, lengths: Int[Tensor, " X"]
) -> tuple[Tensor, Bool[Tensor, "X L"] | None]:
    """Flat rows (N, ...) as (X, L, ...) and where they stand; None: nothing is padding.

    ``[a b c], [2, 1] -> [[a b] [c 0]], [[1 1] [1 0]]``. L is at least 1.
    """
    sizes = lengths.tolist()
    width = max(1, *sizes)
    if all(size == width for size in sizes):
        return flat.unflatten(0, (-1, width)), None
    mask = torch.arange(width, device=flat.device) < lengths[:, None]
    # In one go: the gradient of `pad_sequence` copies all of it once per row.
    padded = flat.new_zeros(mask.numel(), *flat.shape[1:])
    padded.index_copy_(0, mask.flatten().nonzero()[:, 0], flat)
    return padded.unflatten(0, mask.shape), mask


def ranks(counts: Int[Tensor, " B"]) -> Int[Tensor, " S"]:
    """The place of each shot among those of its example: ``[2, 0, 3] -> [0, 1, 0, 1, 2]``."""
    starts = counts.cumsum(0) - counts
    return torch.arange(int(counts.sum()), device=counts.device) - starts.repeat_interleave(counts)


def sums_over_examples(lengths: Int[Tensor, " S"], counts: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Rows of all shots of each example."""
    example = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return torch.zeros_like(counts).index_add(0, example, lengths.to(counts.dtype))


def leaked_mask(mask: Int[Tensor, "S L"], counts: Int[Tensor, " B"]) -> Bool[Tensor, "S L"]:
    """The words and pads that the released code reads: as many as the batch's longest text.

    It pads the k-th shots of all examples to the longest of these and masks nothing, so that what
    an example becomes depends on its neighbors in the batch.
    """
    rank = ranks(counts)
    lengths = mask.sum(dim=1)
    longest = lengths.new_zeros(int(counts.max())).scatter_reduce(0, rank, lengths, "amax")
    return torch.arange(mask.shape[1], device=mask.device) < longest[rank][:, None]


class ShotCache:
    """A datastore's shots as the Context Perceiver reads them, encoded when first asked for.

    Entries are known by their content, so that an edited one is encoded anew. For a
    :class:`polyptych.data.collation.Collator` (``shots=``): a question then costs the same for one
    shot and for ten, but for the context perceiver's look at them.

    Args:
        model: A CaMML that is not being trained.
        processor: Its processor.
        batch_size: Shots that are encoded together.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int = 16) -> None:
        self.model, self.processor, self.batch_size = model, processor, batch_size
        self.entries: dict[str, ShotTokens] = {}

    def get(self, shots: Sequence[Example]) -> Shots:
        """What the model has made of these shots; at least one."""
        keys = [self._key(shot) for shot in shots]
        new = {k: s for k, s in zip(keys, shots, strict=True) if k not in self.entries}
        names = list(new)
        for start in range(0, len(names), self.batch_size):
            part = names[start : start + self.batch_size]
            tokens = self._encode([new[name] for name in part])
            self.entries.update(zip(part, tokens.split(), strict=True))
        return join_shots([self.entries[key] for key in keys]).as_inputs()

    def _key(self, shot: Example) -> str:
        text = shot_text(shot.messages, self.processor.context_template)
        parts = [text, *(image_hash(ref) for ref in shot.images)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @torch.inference_mode()
    def _encode(self, shots: Sequence[Example]) -> ShotTokens:
        question = (Message("user", (TextBlock("?"),)),)
        carrier = Example("of the datastore", question, shots=tuple(shots))
        fields: Any = shots_of(Collator(self.processor, training=False)([carrier]))
        del fields["shot_counts"]  # each by itself, whatever else is encoded with it
        model = self.model
        tokens = model.encode_shots(
            **{
                name: value.to(model.device, model.dtype if value.is_floating_point() else None)
                for name, value in fields.items()
            }
        )
        return ShotTokens(*(getattr(tokens, name).cpu() for name in _FIELDS))

    def fingerprint(self) -> str:
        """A hash of everything that decides what a shot becomes."""
        processor, model = self.processor, self.model
        settings = [processor.image_processor.to_dict(), processor.context_template]
        digest = hashlib.sha256(
            json.dumps([*settings, processor.max_shot_tokens], sort_keys=True).encode()
        )
        for part in (model.vision_encoder, model.connector, model.get_input_embeddings()):
            _digest(digest, part.state_dict())
        _digest(digest, model.camml.state_dict())
        return digest.hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write all entries as one safetensors file.

        Raises:
            PolyptychError: If there are none, or the system refuses.
        """
        if not self.entries:
            raise PolyptychError(f"{path}: 0 encoded shots to write")
        tokens = join_shots(list(self.entries.values()))
        about = {"fingerprint": self.fingerprint(), "keys": "\n".join(self.entries)}
        with write_aside(path, binary=True) as file:
            file.write(save({name: getattr(tokens, name) for name in _FIELDS}, about))

    def load(self, path: str | Path) -> None:
        """Take over the entries of a file.

        Raises:
            PolyptychError: If it cannot be read, or holds shots of another model.
        """
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                tokens = ShotTokens(*(file.get_tensor(name) for name in _FIELDS))
        except (OSError, SafetensorError) as error:
            raise PolyptychError(f"{path}: no readable encoded shots: {error}") from error
        own = self.fingerprint()
        if about.get("fingerprint") != own:
            raise PolyptychError(
                f"{path}: shots encoded by model {about.get('fingerprint')}, not by {own}"
            )
        self.entries.update(zip(about["keys"].split("\n"), tokens.split(), strict=True))


_FIELDS = ("vision", "vision_lengths", "language", "language_lengths")


def _digest(digest: Any, tensors: dict[str, Tensor]) -> None:
    for name, value in tensors.items():
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().numpy().tobytes())
