"""The BLIP-2 base: vision encoder -> Q-Former -> projection -> any decoder of transformers.

BLIP-2 (arXiv 2301.12597) and InstructBLIP (2305.06500), generalized to any number of images per
example, interleaved with text. SAM and Cheetah build on it. The language model is an unmodified
``AutoModelForCausalLM``; the vision encoder is one of :mod:`polyptych.vision.encoder`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    InstructBlipQFormerConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from polyptych.connectors.connector import ConnectorOutput, QFormerConnector
from polyptych.connectors.qformer import QFormer
from polyptych.errors import PolyptychError
from polyptych.language.beam_cache import share_prompt
from polyptych.language.splicing import embed_text, repeat_examples, splice_visual_tokens
from polyptych.vision.encoder import VisionEncoder, feature_width

PREFILL_INPUTS = (
    "pixel_values",
    "image_features",
    "image_counts",
    "last_prompt",
    "qformer_input_ids",
    "qformer_attention_mask",
)
"""What is read while the prompt is read, and never again during cached decoding."""


class PolyptychBlip2Config(PreTrainedConfig):
    """Sizes of the three parts and how they meet.

    Args:
        vision_config: Config (or dict) of an EVA-CLIP, CLIP, SigLIP or ResNet model.
        qformer_config: ``InstructBlipQFormerConfig`` (or dict); its ``encoder_hidden_size`` is set
            to the vision encoder's width.
        text_config: Config (or dict) of any causal language model.
        num_query_tokens: Visual tokens Q per image.
        image_token_id: The placeholder id. It may lie outside the vocabulary (converted models).
        instruction_aware: Whether the Q-Former reads the instruction.
        visual_token_width: Waist of the projection, None for none.
    """

    model_type = "polyptych_blip2"
    sub_configs = {  # noqa: RUF012  (the name and type that transformers reads)
        "vision_config": AutoConfig,
        "qformer_config": InstructBlipQFormerConfig,
        "text_config": AutoConfig,
    }

    def __init__(
        self,
        vision_config: dict[str, Any] | PreTrainedConfig | None = None,
        qformer_config: dict[str, Any] | InstructBlipQFormerConfig | None = None,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        num_query_tokens: int = 32,
        image_token_id: int | None = None,
        instruction_aware: bool = True,
        visual_token_width: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.vision_config = _as_config(vision_config, "instructblip_vision_model")
        self.text_config = _as_config(text_config, "llama")
        if isinstance(qformer_config, InstructBlipQFormerConfig):
            qformer_config = copy.deepcopy(qformer_config)
        else:
            qformer_config = InstructBlipQFormerConfig(**(qformer_config or {}))
        qformer_config.encoder_hidden_size = feature_width(self.vision_config)
        self.qformer_config = qformer_config
        self.num_query_tokens = num_query_tokens
        self.image_token_id = (
            self.text_config.vocab_size if image_token_id is None else image_token_id
        )
        self.instruction_aware = instruction_aware
        self.visual_token_width = visual_token_width
        super().__init__(**kwargs)


def _as_config(config: dict[str, Any] | PreTrainedConfig | None, default: str) -> PreTrainedConfig:
    if isinstance(config, PreTrainedConfig):
        return copy.deepcopy(config)  # transformers writes into it; another model may hold it, too
    fields = dict(config or {})
    return AutoConfig.for_model(fields.pop("model_type", default), **fields)


@no_type_check  # transformers and accelerate also build outputs from one dict
@dataclass
class VisionLanguageOutput(CausalLMOutputWithPast):
    """A causal LM's output and, when asked for, every named intermediate of the forward pass."""

    intermediates: dict[str, Tensor] | None = None


class PolyptychBlip2ForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Several images and text in, text out.

    ``forward`` takes the fields of :class:`polyptych.schema.Batch` by name. Its four steps:

    1. images -> image features (vision encoder, all images of the batch at once)
    2. image features -> visual tokens (connector; sees which images share an example)
    3. visual tokens -> their placeholders among the word embeddings
    4. language model
    """

    config_class: type[PolyptychBlip2Config] = PolyptychBlip2Config
    config: PolyptychBlip2Config
    connector: QFormerConnector
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["QFormerLayer", "InstructBlipEncoderLayer"]  # noqa: RUF012

    def __init__(self, config: PolyptychBlip2Config) -> None:
        super().__init__(config)
        self.vision_encoder = VisionEncoder(config.vision_config)
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

    def _build_connector(self, language_width: int) -> QFormerConnector:
        config = self.config
        return QFormerConnector(
            config.qformer_config,
            config.num_query_tokens,
            language_width,
            config.visual_token_width,
            config.instruction_aware,
        )

    def _init_weights(self, module: torch.nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, QFormer):
            torch.nn.init.normal_(module.query_tokens, std=0.02)

    @property
    def language_width(self) -> int:
        """D_llm: the width of the word embeddings (not always the decoder's hidden size)."""
        return self.get_input_embeddings().embedding_dim

    def get_input_embeddings(self) -> torch.nn.Embedding:
        """The language model's word embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        """Replace the language model's word embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> torch.nn.Module:
        """The language model's head."""
        return self.language_model.get_output_embeddings()

    def get_decoder(self) -> torch.nn.Module:
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
        """Steps 1 and 2: image features (computed unless given) and visual tokens.

        ``record``, where given, receives the named intermediates.
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
        aware = self.config.instruction_aware
        connected = self.connector(
            image_features.to(dtype),
            image_counts,
            qformer_input_ids if aware else None,
            qformer_attention_mask if aware else None,
            record,
        )
        if record is not None:
            record.update(image_features=image_features, visual_tokens=connected.visual_tokens)
        return connected

    def forward(
        self,
        input_ids: Int[Tensor, "C T"],
        attention_mask: Int[Tensor, "C L"] | None = None,
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
        return_intermediates: bool = False,
        **kwargs: Any,
    ) -> VisionLanguageOutput:
        """One pass; shapes in :class:`polyptych.schema.Batch`.

        Rows are examples (C = B), but in a beam search without a cache (C = beams x B). L counts
        what the cache holds, too. Returns logits (C, T, V) (or only the last ``logits_to_keep``),
        the mean cross-entropy over labelled positions, the cache, and the named intermediates when
        asked for.

        Raises:
            PolyptychError: If placeholders and visual tokens differ in number.
        """
        visual_mask = input_ids == self.config.image_token_id
        inputs_embeds = embed_text(self.get_input_embeddings(), input_ids, visual_mask)
        record: dict[str, Tensor] | None = {} if return_intermediates else None
        if pixel_values is not None or image_features is not None:
            connected = self.encode_images(
                pixel_values,
                image_features,
                image_counts,
                qformer_input_ids,
                qformer_attention_mask,
                record,
            )
            assert image_counts is not None  # encode_images has refused that
            inputs_embeds = self._splice(inputs_embeds, visual_mask, connected, image_counts)
        elif bool(visual_mask.any()) and past_key_values is None:
            raise PolyptychError(f"{int(visual_mask.sum())} image placeholders, but 0 images")
        elif torch.is_grad_enabled() and self.training:
            # A text-only batch must still touch the connector, or its processes wait for gradients.
            inputs_embeds = inputs_embeds + 0.0 * sum(p.sum() for p in self._trained_connector())

        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
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

    def _splice(
        self,
        inputs_embeds: Float[Tensor, "C T D_llm"],
        visual_mask: Tensor,
        connected: ConnectorOutput,
        image_counts: Int[Tensor, " B"],
    ) -> Float[Tensor, "C T D_llm"]:
        """Step 3. Without a cache, beam search repeats rows (C = copies x B) but not images."""
        images = connected.tokens_per_image.split(image_counts.tolist())
        per_example = torch.stack([lengths.sum() for lengths in images])
        tokens, per_row = repeat_examples(
            connected.visual_tokens, per_example, len(inputs_embeds) // len(per_example)
        )
        return splice_visual_tokens(inputs_embeds, visual_mask, tokens, per_row)

    # Generation: the prompt is read once, whatever the number of beams.
    #
    # The types are ignored where transformers asks of `self` a protocol that no model meets, and
    # where a signature says less than the one it stands for.

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Drop the images after the first step when the cache holds what they said."""
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,  # type: ignore[arg-type]
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in PREFILL_INPUTS:
                inputs.pop(name, None)
        return inputs

    @staticmethod
    def _expand_inputs_for_generation(  # type: ignore[override]
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeat rows for beams; images stay flat and are encoded once."""
        assert input_ids is not None  # the model's main input
        for name in ("attention_mask", "position_ids"):
            if kwargs.get(name) is not None:
                kwargs[name] = kwargs[name].repeat_interleave(expand_size, dim=0)
        return input_ids.repeat_interleave(expand_size, dim=0), kwargs

    def _prefill(
        self,
        input_ids: Tensor,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        is_first_iteration: bool = True,
    ) -> VisionLanguageOutput:
        """Read each prompt once, then give every beam its copy of the cache.

        transformers expands before it reads, so that five beams read five equal prompts. The first
        rows of each group of copies stand for all of them here.
        """
        read: Any = super()._prefill  # type: ignore[misc]
        copies = max(generation_config.num_beams, generation_config.num_return_sequences)
        if copies == 1 or not model_kwargs.get("use_cache", True) or not is_first_iteration:
            return read(input_ids, generation_config, model_kwargs, is_first_iteration)
        once = dict(model_kwargs)
        for name in ("attention_mask", "position_ids"):
            if once.get(name) is not None:
                once[name] = once[name][::copies]
        outputs = read(input_ids[::copies], generation_config, once, is_first_iteration)
        share_prompt(outputs.past_key_values, copies)
        outputs.logits = outputs.logits.repeat_interleave(copies, dim=0)
        return outputs

    def _get_logits_processor(  # type: ignore[override]
        self,
        generation_config: Any,
        input_ids_seq_length: int | None = None,
        **kwargs: Any,
    ) -> LogitsProcessorList:
        """As in transformers, but the repetition penalty looks at generated tokens only.

        The prompt's ids include placeholders, which are no words (and may be no ids of the
        vocabulary); the published BLIP-2 family, which generates from embeddings, does the same.
        """
        penalty = generation_config.repetition_penalty
        generation_config.repetition_penalty = None
        processors = super()._get_logits_processor(  # type: ignore[misc]
            generation_config, input_ids_seq_length=input_ids_seq_length, **kwargs
        )
        generation_config.repetition_penalty = penalty
        if penalty is not None and penalty != 1.0:
            processors.insert(
                0,
                RepetitionPenaltyLogitsProcessor(
                    penalty, prompt_ignore_length=input_ids_seq_length
                ),
            )
        return processors
