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
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.generation.stopping_criteria import StoppingCriteriaList
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

from polyptych.connectors.connector import ConnectorOutput
from polyptych.connectors.zero_linear import ZeroLinear
from polyptych.errors import PolyptychError
from polyptych.language.beam_cache import share_prompt
from polyptych.language.prefill import Prefill
from polyptych.language.splicing import embed_text, repeat_examples, splice_visual_tokens
from polyptych.models.beam_search import beam_search, is_plain
from polyptych.models.incremental import ReadsIncrementally
from polyptych.models.ragged import costs_less_alone, read_one_by_one
from polyptych.models.small_steps import BranchingCache, has_small_steps
from polyptych.schema import SHOT_FIELDS, Shots, shots_of
from polyptych.vision.encoder import VisionEncoder

PREFILL_INPUTS = (
    "pixel_values",
    "image_features",
    "image_counts",
    "last_prompt",
    "qformer_input_ids",
    "qformer_attention_mask",
    *SHOT_FIELDS,
)
"""What is read while the prompt is read, and never again during cached decoding."""


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


class VisionLanguageModel(ReadsIncrementally, PreTrainedModel, GenerationMixin):
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
        **others: Any,
    ) -> Any:
        """Step 3 for all rows together or, where an answer begins, for each without its padding."""
        if (
            prefill is not None
            and prefill.record is None
            and attention_mask is not None
            and use_cache
            and others["logits_to_keep"] == 1
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
            **others,
        )

    def _decode(self, inputs_embeds: Float[Tensor, "C T D_llm"], **inputs: Any) -> Any:
        """Step 3: the one place that calls the language model; ``inputs`` are its own names."""
        return self.language_model(inputs_embeds=inputs_embeds, **inputs)

    def _decode_above(
        self, lower_states: Float[Tensor, "B T D_llm"], *inputs: Any
    ) -> VisionLanguageOutput:
        """Go on from the states that enter a decoder layer: for methods that act there."""
        raise PolyptychError(
            f"a {self.config.model_type} acts at no decoder layer; it takes no lower_states"
        )

    # Generation: the prompt is read once, whatever the number of beams.
    #
    # The types are ignored where transformers asks of `self` a protocol that no model meets, and
    # where a signature says less than the one it stands for.

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """Typos are caught by the names that ``forward`` lists; shots come as a group."""
        named = {name: v for name, v in model_kwargs.items() if name not in SHOT_FIELDS}
        super()._validate_model_kwargs(named)  # type: ignore[misc]

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        is_first_iteration: bool = False,
        prompt_output: ModelOutput | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Drop the images after the first step when the cache holds what they said.

        ``generate`` takes ``prompt_output`` from :meth:`read_more`; no step needs it any more.
        """
        cache = kwargs.get("past_key_values")
        if isinstance(cache, BranchingCache):  # the rest of what is asked here takes its time
            return {
                "input_ids": input_ids[:, -1:],
                "attention_mask": kwargs.get("attention_mask"),
                "position_ids": None if (p := kwargs.get("position_ids")) is None else p[:, -1:],
                "past_key_values": cache,
            }
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,  # type: ignore[arg-type]
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in PREFILL_INPUTS:
                inputs.pop(name, None)
        return inputs

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Small steps need the prompt's mask and the newest positions; nothing has to grow."""
        cache = outputs.past_key_values
        if not isinstance(cache, BranchingCache):
            return super()._update_model_kwargs_for_generation(
                outputs, model_kwargs, *args, **kwargs
            )
        if (positions := model_kwargs.get("position_ids")) is not None:
            model_kwargs["position_ids"] = positions[:, -1:] + 1
        model_kwargs["past_key_values"] = cache
        return model_kwargs

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
    ) -> ModelOutput:
        """Read each prompt once, then give every beam its copy of the cache, with room to grow.

        transformers expands before it reads, so that five beams read five equal prompts. The first
        rows of each group of copies stand for all of them here. With ``prompt_output``, somebody
        has read it already.
        """
        output = model_kwargs.pop("prompt_output", None)

        def read(*inputs: Any) -> Any:
            return super(VisionLanguageModel, self)._prefill(*inputs) if output is None else output  # type: ignore[misc]

        copies = max(generation_config.num_beams, generation_config.num_return_sequences)
        if not model_kwargs.get("use_cache", True) or not is_first_iteration:
            return read(input_ids, generation_config, model_kwargs, is_first_iteration)
        once = dict(model_kwargs)
        for name in ("attention_mask", "position_ids"):
            if once.get(name) is not None:
                once[name] = once[name][::copies]
        outputs = read(input_ids[::copies], generation_config, once, is_first_iteration)
        outputs.past_key_values = self.decoding_cache(outputs.past_key_values, copies)
        outputs.logits = outputs.logits.repeat_interleave(copies, dim=0)
        return outputs

    def _beam_search(
        self,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: Any,
        synced_gpus: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Ours where it is asked for nothing but the best sequences."""
        if is_plain(generation_config, stopping_criteria, synced_gpus):
            return beam_search(self, input_ids, logits_processor, generation_config, model_kwargs)
        return super()._beam_search(  # type: ignore[misc]
            input_ids,  # type: ignore[arg-type]
            logits_processor,
            stopping_criteria,
            generation_config,
            synced_gpus,
            **model_kwargs,
        )

    def decoding_cache(self, prompt: Cache, copies: int) -> Cache:
        """The cache that beams or samples of each example go on with; ``prompt`` is used up."""
        if isinstance(prompt, BranchingCache):  # whoever read the prompt has asked already
            return prompt
        if has_small_steps(self.language_model, prompt):
            return BranchingCache(self.language_model, prompt, copies)
        share_prompt(prompt, copies)
        return prompt

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
