"""What every base VLM shares: images and text in, text out, whatever connects the two.

``forward`` encodes, splices, decodes and compares, each step a method that a base or a method on it
may override; ``generate`` reads images and prompt once, whatever the number of beams. The language
model is an unmodified ``AutoModelForCausalLM``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, no_type_check

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from polyptych.connectors.connector import ConnectorOutput
from polyptych.connectors.zero_linear import ZeroLinear
from polyptych.errors import PolyptychError
from polyptych.language.prefill import Prefill
from polyptych.language.splicing import embed_text, repeat_examples, splice_visual_tokens
from polyptych.models.answering import AnswersFromOneReading
from polyptych.models.incremental import ReadsIncrementally
from polyptych.models.ragged import costs_less_alone, read_one_by_one
from polyptych.models.small_decoders import BranchingCache, is_prompt, read_prompt
from polyptych.schema import Shots, shots_of
from polyptych.vision.encoder import VisionEncoder


def as_config(
    config: Mapping[str, Any] | PreTrainedConfig | None, default: str
) -> PreTrainedConfig:
    """A part's config from a config, its fields, or nothing; ``default`` names its model type."""
    if isinstance(config, PreTrainedConfig):
        return copy.deepcopy(config)  # transformers writes into it; another model may hold it, too
    fields = dict(config or {})
    return AutoConfig.for_model(fields.pop("model_type", default), **fields)


@no_type_check  # transformers and accelerate also build outputs from one dict
@dataclass
class VisionLanguageOutput(CausalLMOutputWithPast):
    """A causal LM's output and, when asked for, every named intermediate of the forward pass."""

    intermediates: dict[str, Tensor] | None = None


class VisionLanguageModel(
    ReadsIncrementally, AnswersFromOneReading, PreTrainedModel, GenerationMixin
):
    """Several images and text in, text out.

    ``forward`` takes the fields of :class:`polyptych.schema.Batch` by name. Its steps:

    1. images -> image features -> visual tokens (:meth:`encode_images`: vision encoder, then
       :meth:`connect`, which sees which images share an example)
    2. visual tokens -> their placeholders among the word embeddings (:meth:`_splice`)
    3. language model (:meth:`_decode`, the one place that calls it)
    4. loss over the labelled positions

    A base says what its connector is (:meth:`_build_connector`) and how it is called
    (:meth:`connect`). Its config has ``vision_config``, ``text_config`` and ``image_token_id``.
    """

    connector: nn.Module
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vision_encoder = self._build_vision_encoder()
        self.language_model = AutoModelForCausalLM.from_config(
            config.text_config, dtype=torch.get_default_dtype()
        )
        self.connector = self._build_connector(self.language_width)
        self.post_init()
        self.generation_config.suppress_tokens = (
            [config.image_token_id]
            if config.image_token_id < config.text_config.vocab_size
            else None
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ZeroLinear):
            module.reset_parameters()

    def _build_vision_encoder(self) -> VisionEncoder:
        return VisionEncoder(self.config.vision_config)

    def _build_connector(self, language_width: int) -> nn.Module:
        raise NotImplementedError

    @property
    def language_width(self) -> int:
        """D_llm: the width of the word embeddings (not always the decoder's hidden size)."""
        return self.get_input_embeddings().embedding_dim

    def get_input_embeddings(self) -> nn.Embedding:
        """The language model's word embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's word embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self.language_model.get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        """The decoder without its head; its layers are ``get_decoder().layers``."""
        return self.language_model.get_decoder()

    def encode_images(
        self,
        pixel_values: Float[Tensor, "I 3 H W"] | None = None,
        image_features: Float[Tensor, "I P D_v"] | None = None,
        image_counts: Int[Tensor, " B"] | None = None,
        qformer_input_ids: Int[Tensor, "B T_q"] | None = None,
        qformer_attention_mask: Int[Tensor, "B T_q"] | None = None,
        record: dict[str, Tensor] | None = None,
    ) -> ConnectorOutput:
        """Step 1: image features (computed unless given) and visual tokens.

        ``record``, where given, receives the named intermediates.

        Raises:
            PolyptychError: If ``image_counts`` is missing or speaks of another number of images.
        """
        if image_features is None:
            image_features = self.vision_encoder(pixel_values)
        if image_counts is None:
            raise PolyptychError(f"{len(image_features)} images came without image_counts")
        if int(image_counts.sum()) != len(image_features):
            raise PolyptychError(
                f"image_counts speak of {int(image_counts.sum())} images, "
                f"{len(image_features)} were given"
            )
        dtype = next(self.connector.parameters()).dtype
        connected = self.connect(
            image_features.to(dtype),
            image_counts,
            qformer_input_ids,
            qformer_attention_mask,
            record,
        )
        connected.image_features = image_features
        if record is not None:
            record.update(image_features=image_features, visual_tokens=connected.visual_tokens)
        return connected

    def connect(
        self,
        image_features: Float[Tensor, "I P D_v"],
        image_counts: Int[Tensor, " B"],
        instruction_ids: Int[Tensor, "B T_q"] | None = None,
        instruction_mask: Int[Tensor, "B T_q"] | None = None,
        record: dict[str, Tensor] | None = None,
    ) -> ConnectorOutput:
        """Visual tokens of all images of the batch; the instruction is for whom it concerns."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: Int[Tensor, "C T"],
        attention_mask: Int[Tensor, "C L"] | Shaped[Tensor, "C 1 T L"] | None = None,
        position_ids: Int[Tensor, "C T"] | None = None,
        labels: Int[Tensor, "C T"] | None = None,
        pixel_values: Float[Tensor, "I 3 H W"] | None = None,
        image_features: Float[Tensor, "I P D_v"] | None = None,
        image_counts: Int[Tensor, " B"] | None = None,
        last_prompt: Int[Tensor, " B"] | None = None,
        qformer_input_ids: Int[Tensor, "B T_q"] | None = None,
        qformer_attention_mask: Int[Tensor, "B T_q"] | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        lower_states: Float[Tensor, "B T D_llm"] | None = None,
        return_intermediates: bool = False,
        **kwargs: Any,
    ) -> VisionLanguageOutput:
        """One pass; shapes in :class:`polyptych.schema.Batch`.

        Rows are examples (C = B), but in a beam search without a cache (C = beams x B). L counts
        what the cache holds, too; a mask with four dimensions says of every position what it sees,
        for rows that branch. Returns logits (C, T, V) (or only the last ``logits_to_keep``), the
        mean cross-entropy over labelled positions, the cache, and the named intermediates when
        asked for. The fields of :class:`polyptych.schema.Shots` are for methods that read retrieved
        examples. With ``lower_states`` steps 1, 2 and the lower half of step 3 have been done
        before; see :meth:`_decode_above`.

        Raises:
            PolyptychError: If placeholders and visual tokens differ in number.
        """
        if isinstance(past_key_values, BranchingCache):
            words = self.get_input_embeddings()(input_ids)
            logits = past_key_values.step(words, attention_mask, position_ids)
            return VisionLanguageOutput(logits=logits, past_key_values=past_key_values)
        visual_mask = input_ids == self.config.image_token_id
        if lower_states is not None:
            return self._decode_above(
                lower_states,
                visual_mask,
                attention_mask,
                position_ids,
                labels,
                image_features,
                image_counts,
                last_prompt,
                kwargs.get("num_items_in_batch"),
            )
        record: dict[str, Tensor] | None = {} if return_intermediates else None
        inputs_embeds = self._embed(input_ids, visual_mask, shots_of(kwargs), record)
        prefill = None
        if pixel_values is not None or image_features is not None:
            connected = self.encode_images(
                pixel_values,
                image_features,
                image_counts,
                qformer_input_ids,
                qformer_attention_mask,
                record,
            )
            # encode_images has filled in the one and refused to go on without the other
            assert connected.image_features is not None and image_counts is not None
            inputs_embeds = self._splice(inputs_embeds, visual_mask, connected, image_counts)
            prefill = Prefill(
                visual_mask,
                image_counts,
                connected.tokens_per_image,
                connected.image_features,
                last_prompt,
                connected.image_key_values,
                record,
            )
        elif bool(visual_mask.any()) and past_key_values is None:
            raise PolyptychError(f"{int(visual_mask.sum())} image placeholders, but 0 images")
        elif torch.is_grad_enabled() and self.training:
            # A text-only batch must still touch the connector, or its processes wait for gradients.
            inputs_embeds = inputs_embeds + 0.0 * sum(p.sum() for p in self._trained_connector())

        outputs = self._read(
            inputs_embeds,
            prefill=prefill,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
        )
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=outputs.logits,
                labels=labels,
                vocab_size=outputs.logits.shape[-1],
                num_items_in_batch=kwargs.get("num_items_in_batch"),
            )
        if record is not None:
            record["inputs_embeds"] = inputs_embeds
        return VisionLanguageOutput(
            loss=loss,
            logits=outputs.logits,
            past_key_values=outputs.past_key_values,
            intermediates=record,
        )

    def _trained_connector(self) -> list[Tensor]:
        return [p for p in self.connector.parameters() if p.requires_grad]

    def _embed(
        self,
        input_ids: Int[Tensor, "C T"],
        visual_mask: Bool[Tensor, "C T"],
        shots: Shots | None = None,
        record: dict[str, Tensor] | None = None,
    ) -> Float[Tensor, "C T D_llm"]:
        """Word embeddings of the rows; where shots become context is for methods that read them."""
        if shots is not None:
            raise PolyptychError(
                f"a {self.config.model_type} reads no shots; {int(shots['shot_counts'].sum())} came"
            )
        return embed_text(self.get_input_embeddings(), input_ids, visual_mask)

    def _splice(
        self,
        inputs_embeds: Float[Tensor, "C T D_llm"],
        visual_mask: Bool[Tensor, "C T"],
        connected: ConnectorOutput,
        image_counts: Int[Tensor, " B"],
    ) -> Float[Tensor, "C T D_llm"]:
        """Step 2. Without a cache, beam search repeats rows (C = copies x B) but not images."""
        images = connected.tokens_per_image.split(image_counts.tolist())
        per_example = torch.stack([lengths.sum() for lengths in images])
        tokens, per_row = repeat_examples(
            connected.visual_tokens, per_example, len(inputs_embeds) // len(per_example)
        )
        return splice_visual_tokens(inputs_embeds, visual_mask, tokens, per_row)

    def _read(
        self,
        inputs_embeds: Float[Tensor, "C T D_llm"],
        prefill: Prefill | None,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        use_cache: bool | None,
        logits_to_keep: int | Tensor,
        **others: Any,
    ) -> Any:
        """Step 3 for all rows together or, where an answer begins, for each without its padding."""
        if (
            prefill is not None
            and prefill.record is None
            and attention_mask is not None
            and use_cache
            and isinstance(logits_to_keep, int)
            and logits_to_keep == 1
            and len(inputs_embeds) == len(prefill.image_counts)
            and not torch.is_grad_enabled()
            and costs_less_alone(self.language_model, attention_mask, past_key_values)
        ):
            return read_one_by_one(self._decode, inputs_embeds, prefill, attention_mask)
        return self._decode(
            inputs_embeds,
            prefill=prefill,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **others,
        )

    def _decode(
        self,
        inputs_embeds: Float[Tensor, "C T D_llm"],
        *,
        prefill: Prefill | None = None,
        **inputs: Any,
    ) -> Any:
        """Step 3: the one place that calls the language model; ``inputs`` are its own names.

        ``prefill`` is for methods that act in its layers.
        """
        if is_prompt(self.language_model, inputs_embeds, **inputs):
            return read_prompt(self.language_model, inputs_embeds, inputs.get("past_key_values"))
        return self.language_model(inputs_embeds=inputs_embeds, **inputs)

    def _decode_above(
        self, lower_states: Float[Tensor, "B T D_llm"], *inputs: Any
    ) -> VisionLanguageOutput:
        """Go on from the states that enter a decoder layer: for methods that act there."""
        raise PolyptychError(
            f"a {self.config.model_type} acts at no decoder layer; it takes no lower_states"
        )
