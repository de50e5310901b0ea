"""One branching row per pair gives what two plain rows give, on every model and decoder."""

from __future__ import annotations

import pytest
import torch

from polyptych.data.collation import Collator
from polyptych.data.preferences import answered
from polyptych.errors import PolyptychError
from polyptych.schema import IGNORE_INDEX, PreferencePair
from polyptych.testing import (
    tiny_camml,
    tiny_camml_processor,
    tiny_cheetah,
    tiny_examples,
    tiny_llava,
    tiny_llava_processor,
    tiny_model,
    tiny_processor,
    tiny_shot_examples,
)
from polyptych.training.branching import branching_mask, check_branching, scored_logits
from polyptych.training.dpo import answer_log_probs
from polyptych.training.preference_data import PreferenceCollator, encode_answers

ANSWERS = ("a red ball.", "the dog sleeps under the tree.", "mia runs.", "a tree.")


def pairs_of(examples) -> list[PreferencePair]:
    return [
        PreferencePair(
            e.id, e.prompt, ANSWERS[i % 4], ANSWERS[(i + 1) % 4], e.images, shots=e.shots
        )
        for i, e in enumerate(examples)
    ]


def plain_log_prob(model, processor, pair, answer) -> float:
    """The sum over the answer's tokens, from a training row of its own."""
    batch = dict(Collator(processor, training=True)([answered(pair, answer)]))
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits[:, :-1]
    scored = labels != IGNORE_INDEX
    log_probs = logits.log_softmax(-1)[scored].gather(-1, labels[scored][:, None])
    return float(log_probs.sum())


MODELS = {
    "llava": (tiny_llava, tiny_llava_processor),
    "sam": (tiny_model, tiny_processor),
    "sam images first": (tiny_model, lambda: tiny_processor(layout="images_first")),
    "cheetah": (tiny_cheetah, tiny_processor),
    **{
        f"llava over {decoder}": (lambda d=decoder: tiny_llava(d), tiny_llava_processor)
        for decoder in ("qwen2", "gpt2", "opt")
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_branches_equal_rows_of_their_own(name: str) -> None:
    build, build_processor = MODELS[name]
    model, processor = build(), build_processor()
    pairs = pairs_of(tiny_examples(4))
    _compare(model, processor, pairs)


def test_branches_equal_rows_with_shots() -> None:
    model, processor = tiny_camml(), tiny_camml_processor()
    _compare(model, processor, pairs_of(tiny_shot_examples(4)))


def _compare(model, processor, pairs) -> None:
    batch = PreferenceCollator(processor, pairs)([{"index": i} for i in range(len(pairs))])
    with torch.no_grad():
        logits = scored_logits(model, batch)
    assert len(logits) == len(batch["scored_targets"])  # the head saw nothing else
    ours = answer_log_probs(logits, batch["scored_targets"], batch["scored_answers"], len(pairs))
    for side, scores in zip(("chosen", "rejected"), ours, strict=True):
        plain = [plain_log_prob(model, processor, pair, getattr(pair, side)) for pair in pairs]
        torch.testing.assert_close(scores, torch.tensor(plain), atol=1e-4, rtol=1e-5)


def test_eager_attention_sees_the_same() -> None:
    model, processor = tiny_llava(), tiny_llava_processor()
    batch = PreferenceCollator(processor, pairs_of(tiny_examples(3)))([{"index": 0}, {"index": 2}])
    with torch.no_grad():
        fused = scored_logits(model, batch)
        model.language_model.set_attn_implementation("eager")
        torch.testing.assert_close(scored_logits(model, batch), fused, atol=1e-5, rtol=1e-5)


def test_an_answer_does_not_see_the_other() -> None:
    model, processor = tiny_llava(), tiny_llava_processor()
    pair = pairs_of(tiny_examples(1))[0]
    other = PreferencePair(pair.id, pair.prompt, pair.chosen, "mia runs.", pair.images)
    logits = []
    for each in (pair, other):
        batch = PreferenceCollator(processor, [each])([{"index": 0}])
        with torch.no_grad():
            logits.append(scored_logits(model, batch)[batch["scored_answers"] == 0])
    torch.testing.assert_close(*logits)


def test_who_sees_whom() -> None:
    """pad prompt | chosen | rejected rejected."""
    mask = branching_mask(torch.tensor([[0, 1, 1, 1, 1]]), torch.tensor([0, 0, 1, 2, 2]))
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],  # padding: itself alone
        [0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 0, 1, 0],
        [0, 1, 0, 1, 1],
    ]


def test_an_image_is_encoded_once_per_pair() -> None:
    model, processor = tiny_llava(), tiny_llava_processor()
    seen = []
    model.vision_encoder.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    pairs = pairs_of(tiny_examples(3))
    scored_logits(model, PreferenceCollator(processor, pairs)([{"index": i} for i in range(3)]))
    assert seen == [sum(len(pair.images) for pair in pairs)]


def test_long_answers_are_cut_and_a_full_prompt_is_refused() -> None:
    processor = tiny_llava_processor()
    pair = pairs_of(tiny_examples(1))[0]
    whole = encode_answers(processor, pair, None)
    prompt = len(processor.encode(answered(pair), with_target=False).input_ids)
    cut = encode_answers(processor, pair, prompt + 2)
    assert (cut.chosen, cut.rejected) == (whole.chosen[:2], whole.rejected[:2])
    assert whole.chosen[-1] == processor.tokenizer.eos_token_id
    with pytest.raises(PolyptychError, match=f"tiny-0: a prompt of {prompt} tokens leaves no room"):
        encode_answers(processor, pair, prompt)


def test_a_window_shorter_than_the_rows_is_refused() -> None:
    model = tiny_llava("qwen2")
    model.get_decoder().config.sliding_window = 8
    model.get_decoder().config.layer_types = ["sliding_attention", "full_attention"]
    with pytest.raises(PolyptychError, match="looks back 8 positions; rows have up to 9"):
        check_branching(model, 9)
    check_branching(model, 8)
