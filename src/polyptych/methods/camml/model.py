"""CaMML: context-aware multimodal learning (arXiv 2401.03149) on the LLaVA base.

The base is unchanged but for one more kind of placeholder: where an example has shots, 2Q context
tokens stand among its words. An example without shots is read as the base reads it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, InstructBlipQFormerConfig

from polyptych.errors import PolyptychError
from polyptych.language.splicing import embed_text, repeat_examples
from polyptych.methods.camml.perceivers import CaMML, ContextPerceiver
from polyptych.methods.camml.shots import ShotTokens, leaked_mask
from polyptych.models.llava import PolyptychLlavaConfig, PolyptychLlavaForConditionalGeneration
from polyptych.schema import Shots

Behavior = Literal["fixed", "released"]


class PolyptychCammlConfig(PolyptychLlavaConfig):
    """The LLaVA base's config, the perceivers' sizes and what they may know.

    Args:
        perceiver_config: ``InstructBlipQFormerConfig`` (or dict) of all three perceivers; two
            layers unless it says otherwise.
        num_query_tokens: Q; an example with shots has 2Q context tokens.
        context_token_id: Their placeholder id; default: the first free one outside the vocabulary.
        behavior: ``fixed`` reads words only; ``released`` also the pads between the texts of a
            batch, as the published code does.
        text_positions: See :class:`polyptych.methods.camml.perceivers.CaMML`.
        shot_positions: See there.

    Raises:
        PolyptychError: For positions under ``released``, which has none.
    """

    model_type = "polyptych_camml"
    sub_configs = {  # noqa: RUF012  (the name and type that transformers reads)
        "vision_config": AutoConfig,
        "text_config": AutoConfig,
        "perceiver_config": InstructBlipQFormerConfig,
    }

    def __init__(
        self,
        perceiver_config: Mapping[str, Any] | InstructBlipQFormerConfig | None = None,
        num_query_tokens: int = 128,
        context_token_id: int | None = None,
        behavior: Behavior = "fixed",
        text_positions: int = 0,
        shot_positions: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(perceiver_config, InstructBlipQFormerConfig):
            sizes = copy.deepcopy(perceiver_config)
        else:
            sizes = InstructBlipQFormerConfig(
                **{"num_hidden_layers": 2, **(perceiver_config or {})}
            )
        sizes.encoder_hidden_size = sizes.hidden_size
        self.perceiver_config = sizes
        self.num_query_tokens = num_query_tokens
        if context_token_id is None:
            outside = self.text_config.vocab_size
            context_token_id = outside + (self.image_token_id == outside)
        self.context_token_id = context_token_id
        if behavior == "released" and (text_positions or shot_positions):
            raise PolyptychError(
                f"the released CaMML knows no positions; {text_positions} of words and "
                f"{shot_positions} of shots were asked for"
            )
        self.behavior = behavior
        self.text_positions, self.shot_positions = text_positions, shot_positions

    @property
    def context_tokens(self) -> int:
        """2Q: vision first, then text."""
        return 2 * self.num_query_tokens


class PolyptychCammlForConditionalGeneration(PolyptychLlavaForConditionalGeneration):
    """The LLaVA base that reads shots; ``forward`` and ``generate`` take them as ``shots``."""

    config_class = PolyptychCammlConfig
    config: PolyptychCammlConfig
    camml: CaMML

    def __init__(self, config: PolyptychCammlConfig) -> None:
        super().__init__(config)
        self.camml = CaMML(
            config.perceiver_config,
            config.num_query_tokens,
            self.language_width,
            config.text_positions,
            config.shot_positions,
        )
        self.post_init()
        if config.context_token_id < config.text_config.vocab_size:
            suppressed = self.generation_config.suppress_tokens or []
            self.generation_config.suppress_tokens = [*suppressed, config.context_token_id]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ContextPerceiver):
            nn.init.normal_(module.vision_queries, std=0.02)
            nn.init.normal_(module.text_queries, std=0.02)

    def encode_shots(
        self,
        shot_input_ids: Int[Tensor, "S L"],
        shot_attention_mask: Int[Tensor, "S L"],
        shot_image_counts: Int[Tensor, " S"],
        shot_pixel_values: Float[Tensor, "I 3 H W"] | None = None,
        shot_image_features: Float[Tensor, "I P D_v"] | None = None,
        shot_counts: Int[Tensor, " B"] | None = None,
    ) -> ShotTokens:
        """What the Vision and the Language Perceiver make of each shot; takes what a batch says.

        It depends on the shot alone, hence can be computed once per datastore entry; but under
        ``released`` with ``shot_counts``, where it depends on the batch, too.

        Raises:
            PolyptychError: If images and ``shot_image_counts`` differ in number, or a shot has no
                image under ``released``.
        """
        visible = shot_attention_mask.bool()
        if self.config.behavior == "released":
            without = int((shot_image_counts == 0).sum())
            if without:
                raise PolyptychError(
                    f"{without} of {len(shot_image_counts)} shots have no image; the released "
                    "CaMML needs 1 in each"
                )
            if shot_counts is not None:
                visible = leaked_mask(shot_attention_mask, shot_counts)
        words = self.get_input_embeddings()(shot_input_ids)
        visual_tokens = words.new_zeros(0, words.shape[-1])
        visual_lengths = torch.zeros_like(shot_image_counts)
        if shot_pixel_values is not None or shot_image_features is not None:
            connected = self.encode_images(
                shot_pixel_values, shot_image_features, shot_image_counts
            )
            visual_tokens = connected.visual_tokens
            images = connected.tokens_per_image.split(shot_image_counts.tolist())
            visual_lengths = torch.stack([lengths.sum() for lengths in images])
        return self.camml.read_shots(visual_tokens, visual_lengths, words, visible)

    def _embed(
        self,
        input_ids: Int[Tensor, "C T"],
        visual_mask: Bool[Tensor, "C T"],
        shots: Shots | None = None,
        record: dict[str, Tensor] | None = None,
    ) -> Float[Tensor, "C T D_llm"]:
        """Words, and context tokens at their placeholders."""
        here = input_ids == self.config.context_token_id
        embeddings = embed_text(self.get_input_embeddings(), input_ids, visual_mask | here)
        if shots is None:
            if bool(here.any()):
                raise PolyptychError(f"{int(here.sum())} context placeholders, but 0 shots")
            if torch.is_grad_enabled() and self.training:
                # A batch without shots must still touch the perceivers, or its processes wait.
                trained = [p for p in self.camml.parameters() if p.requires_grad]
                embeddings = embeddings + 0.0 * sum(p.sum() for p in trained)
            return embeddings
        counts, tokens = shots["shot_counts"], ShotTokens.of(shots)
        if tokens is None:
            tokens = self.encode_shots(**shots)  # type: ignore[misc]  # none of a ShotTokens'
        if int(counts.sum()) != len(tokens):
            raise PolyptychError(
                f"shot_counts speak of {int(counts.sum())} shots, {len(tokens)} were given"
            )
        context = self.camml.context_tokens(tokens, counts)
        if record is not None:
            record["context_tokens"] = context
        return _splice_context(embeddings, here, context, counts)


def _splice_context(
    embeddings: Float[Tensor, "C T D_llm"],
    here: Bool[Tensor, "C T"],
    context: Float[Tensor, "X Q2 D_llm"],
    counts: Int[Tensor, " B"],
) -> Float[Tensor, "C T D_llm"]:
    """Each example's context tokens at its placeholders, in every copy of a beam search."""
    per_example = (counts > 0).long() * context.shape[1]
    copies = len(embeddings) // len(counts)
    tokens, per_row = repeat_examples(context.flatten(0, 1), per_example, copies)
    places = here.sum(dim=1)
    if not torch.equal(places, per_row):
        row = int((places != per_row).nonzero()[0, 0])
        raise PolyptychError(
            f"row {row} of the batch has {int(places[row])} context placeholders for "
            f"{int(per_row[row])} context tokens of {int(counts[row // copies])} shots"
        )
    return embeddings.masked_scatter(here[..., None], tokens.to(embeddings.dtype))
