"""Conversations: every answer equals that to the whole dialogue, for a part of the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from polyptych.data.images import load_image
from polyptych.errors import PolyptychError
from polyptych.evaluation import local_model
from polyptych.evaluation.local_model import answer
from polyptych.evaluation.task import GenerationSettings
from polyptych.language.halves import decoder_layers
from polyptych.schema import Example
from polyptych.serving import conversation as conversation_module
from polyptych.serving.conversation import Conversation
from polyptych.testing import (
    TINY_QUERIES,
    tiny_cheetah,
    tiny_image,
    tiny_llava,
    tiny_llava_processor,
    tiny_model,
    tiny_processor,
)

GREEDY = GenerationSettings(max_new_tokens=9)
PICTURES = [load_image(tiny_image(seed)) for seed in range(4)]
TURNS = [
    ("what do these pictures have in common?", PICTURES[:2]),
    ("and what color is it?", []),
    ("now look at <image> and at the dog in <image>", PICTURES[2:]),
    ("is it in every picture?", []),
]
PROCESSOR = tiny_processor()

MODELS: dict[str, Callable[[], Any]] = {
    "vpgc, llama": lambda: tiny_cheetah("llama"),
    "vpgc, qwen2": lambda: tiny_cheetah("qwen2"),
    "vpgc, opt": lambda: tiny_cheetah("opt"),
    "sam": tiny_model,
    "reads the instruction": lambda: tiny_model("off"),
    "reads images alone": lambda: tiny_model("off", instruction_aware=False),
    "reads images alone, gpt2": lambda: tiny_model("off", "gpt2", instruction_aware=False),
    "reads images alone, opt": lambda: tiny_model("off", "opt", instruction_aware=False),
}


def deep_cheetah(decoder: str, layer: int, **changes: Any) -> Any:
    """Five layers, some of which see a short window only where ``changes`` say so."""
    text = tiny_cheetah(decoder).config.text_config.to_dict()
    text = {**text, "num_hidden_layers": 5, "layer_types": None, **changes}
    return tiny_cheetah(decoder, text_config=text, injection_layer=layer)


class Spy:
    """What a model reads: images, and tokens per decoder layer while prompts are read."""

    def __init__(self, model: Any) -> None:
        self.images, self.tokens = 0, dict.fromkeys(range(len(decoder_layers_of(model))), 0)
        self.counting = True
        model.vision_encoder.register_forward_pre_hook(self._see)
        for index, layer in enumerate(decoder_layers_of(model)):
            layer.register_forward_pre_hook(self._reader(index), with_kwargs=True)

    def _see(self, module: Any, args: Any) -> None:
        self.images += len(args[0])

    def _reader(self, index: int) -> Any:
        def read(module: Any, args: Any, kwargs: Any) -> None:
            if self.counting:
                self.tokens[index] += args[0].shape[1]

        return read

    def take(self) -> tuple[int, list[int]]:
        """Images and tokens per layer since the last time."""
        taken = self.images, list(self.tokens.values())
        self.images, self.tokens = 0, dict.fromkeys(self.tokens, 0)
        return taken


def decoder_layers_of(model: Any) -> Any:
    decoder = model.get_decoder()
    return decoder.h if hasattr(decoder, "h") else decoder_layers(decoder)


@contextmanager
def recorded_ids(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """Every row of ids that is generated inside the block."""
    rows: list[torch.Tensor] = []

    def generate_ids(*inputs: Any) -> torch.Tensor:
        rows.append(original(*inputs))
        return rows[-1]

    original = local_model.generate_ids
    with monkeypatch.context() as patch:
        patch.setattr(local_model, "generate_ids", generate_ids)
        patch.setattr(conversation_module, "generate_ids", generate_ids)
        yield rows


def check_equals_asking_from_scratch(
    model: Any,
    settings: GenerationSettings,
    monkeypatch: pytest.MonkeyPatch,
    processor: Any = PROCESSOR,
) -> None:
    talk = Conversation(model, processor, settings)
    for index, (question, pictures) in enumerate(TURNS):
        with recorded_ids(monkeypatch) as rows:
            said = talk.ask(question, pictures)
            dialogue = Example(f"turn {index}", talk.messages[:-1], talk.images)
            expected = answer(model, processor, [dialogue], settings)[0]
        assert said == expected
        assert torch.equal(*rows), index
    assert len(talk.messages) == 2 * len(TURNS)
    assert len(talk.images) == len(PICTURES)


@pytest.mark.parametrize("name", MODELS)
def test_every_turn_equals_asking_from_scratch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_equals_asking_from_scratch(MODELS[name](), GREEDY, monkeypatch)


def test_llava(monkeypatch: pytest.MonkeyPatch) -> None:
    check_equals_asking_from_scratch(tiny_llava(), GREEDY, monkeypatch, tiny_llava_processor())


@pytest.mark.parametrize(
    "settings",
    [
        GenerationSettings(max_new_tokens=9, do_sample=True, temperature=1.5, top_p=0.95, seed=3),
        GenerationSettings(max_new_tokens=9, num_beams=3),
        GenerationSettings(max_new_tokens=9, repetition_penalty=1.7),
    ],
    ids=["sampling", "beams", "repetition penalty"],
)
@pytest.mark.parametrize("name", ["vpgc, llama", "reads images alone"])
def test_every_way_of_decoding(
    name: str, settings: GenerationSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_equals_asking_from_scratch(MODELS[name](), settings, monkeypatch)


@pytest.mark.parametrize("layer", [1, 3, 4])
def test_any_layer_may_be_the_one_that_vpgc_acts_at(
    layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_equals_asking_from_scratch(deep_cheetah("llama", layer), GREEDY, monkeypatch)


def test_a_decoder_that_mixes_kinds_of_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    model = deep_cheetah("qwen2", 1, **window)
    kinds = model.config.text_config.layer_types
    assert kinds == ["full_attention"] * 2 + ["sliding_attention"] * 3
    check_equals_asking_from_scratch(model, GREEDY, monkeypatch)


def work_per_turn(model: Any) -> tuple[list[tuple[int, list[int]]], list[int]]:
    """Images and tokens per layer that each turn reads, and the length of its prompt."""
    spy, work, lengths = Spy(model), [], []
    talk = Conversation(model, PROCESSOR, GenerationSettings(max_new_tokens=1))  # no other steps
    for question, pictures in TURNS:
        talk.ask(question, pictures)
        work.append(spy.take())
        lengths.append(talk._memory.inputs_embeds.shape[1])
    return work, lengths


def test_below_the_layer_only_new_tokens_are_read_and_images_are_encoded_once() -> None:
    model = deep_cheetah("llama", 3)
    work, lengths = work_per_turn(model)
    new = [now - before for before, now in zip([0, *lengths], lengths, strict=False)]
    assert min(new) > 2 * TINY_QUERIES and lengths[-1] > 90
    assert [images for images, _ in work] == [2, 0, 2, 0]
    for (_, tokens), added, length in zip(work, new, lengths, strict=True):
        assert tokens == [added] * 3 + [length] * 2


def test_without_such_a_layer_no_token_is_read_twice() -> None:
    work, lengths = work_per_turn(MODELS["reads images alone"]())
    new = [now - before for before, now in zip([0, *lengths], lengths, strict=False)]
    assert work == [(images, [added] * 2) for images, added in zip([2, 0, 2, 0], new, strict=True)]


def test_a_connector_that_reads_the_instruction_makes_new_tokens_of_old_features() -> None:
    work, lengths = work_per_turn(MODELS["sam"]())
    assert [images for images, _ in work] == [2, 0, 2, 0]
    before = 1 + len(PROCESSOR.tokenizer("question: ")["input_ids"])  # bos and the first words
    assert [tokens for _, tokens in work[1:]] == [[n - before] * 2 for n in lengths[1:]]


def test_an_edited_dialogue_is_read_from_the_change_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_cheetah()
    talk = Conversation(model, PROCESSOR, GREEDY)
    for question, pictures in TURNS[:2]:
        talk.ask(question, pictures)
    talk.messages = (talk.messages[0], *talk.messages[2:])  # its first answer never happened
    with recorded_ids(monkeypatch) as rows:
        said = talk.ask(*TURNS[2])
        dialogue = Example("edited", talk.messages[:-1], talk.images)
        assert said == answer(model, PROCESSOR, [dialogue], GREEDY)[0]
    assert torch.equal(*rows)


def test_a_refused_question_changes_nothing() -> None:
    talk = Conversation(tiny_cheetah(), PROCESSOR, GREEDY)
    talk.ask(*TURNS[0])
    before = talk.messages, talk.images, talk._memory
    with pytest.raises(PolyptychError, match="1 <image>, but 0 pictures"):
        talk.ask("what is in <image>?")
    with pytest.raises(PolyptychError, match="empty"):
        talk.ask(" ")
    assert (talk.messages, talk.images, talk._memory) == before


def test_switching_vpgc_off_within_a_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_cheetah()
    talk = Conversation(model, PROCESSOR, GREEDY)
    talk.ask(*TURNS[0])
    with model.vpgc_disabled():
        said = talk.ask(*TURNS[2])
        dialogue = Example("off", talk.messages[:-1], talk.images)
        assert said == answer(model, PROCESSOR, [dialogue], GREEDY)[0]
