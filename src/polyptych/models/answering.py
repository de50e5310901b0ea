"""Writing answers: prompts are read once, whatever the number of beams, and then only added to.

The part of a base VLM that meets ``generate``. What transformers does well is left to it; what it
would do once per beam or at every step, and what small decoders on a CPU need not do at all, is
done here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.generation.stopping_criteria import StoppingCriteriaList
from transformers.utils import ModelOutput

from polyptych.language.beam_cache import share_prompt
from polyptych.models.beam_search import beam_search, is_plain
from polyptych.models.small_decoders import BranchingCache, is_small_decoder
from polyptych.schema import SHOT_FIELDS

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


class AnswersFromOneReading(GenerationMixin):
    """``GenerationMixin`` with other steps.

    Types are ignored where transformers asks of ``self`` a protocol that no model meets, and where
    a signature says less than the one it stands for.
    """

    language_model: Any

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
            if output is not None:
                return output
            return super(AnswersFromOneReading, self)._prefill(*inputs)  # type: ignore[misc]

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
        if is_small_decoder(self.language_model, prompt):
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
