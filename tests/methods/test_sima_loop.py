"""SIMA's loop on tiny models: answers, critic, pairs; kills, refusals and released files."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from polyptych.data.collation import Collator
from polyptych.data.images import load_image
from polyptych.data.preferences import read_pairs
from polyptych.errors import PolyptychError
from polyptych.evaluation.local_model import answer
from polyptych.evaluation.task import GenerationSettings
from polyptych.methods.sima import critic, critic_rows, responses
from polyptych.methods.sima.controls import RandomJudge, TruthJudge
from polyptych.methods.sima.critic import LikelihoodJudge, WordsJudge, comparable, self_critic
from polyptych.methods.sima.critic_rows import (
    Contest,
    CriticRows,
    default_format,
    verdict_tokens,
)
from polyptych.methods.sima.pairs import build_pairs, require_pairs, write_pair_files
from polyptych.methods.sima.practice import critic_examples, spoil
from polyptych.methods.sima.prefix_sharing import Case, SharedReader, common_prefix
from polyptych.methods.sima.prompts import BRIEF, FULL, CriticFormat
from polyptych.methods.sima.records import (
    Comparison,
    Prompt,
    Responses,
    Verdict,
    as_prompts,
    read_prompts,
    read_responses,
    read_verdicts,
)
from polyptych.methods.sima.responses import (
    SamplingSettings,
    draw_candidates,
    draw_tokens,
    prompt_seed,
    self_generate,
)
from polyptych.methods.sima.truth import agreement, description_truth
from polyptych.schema import IGNORE_INDEX, Example, ImageBlock, Message, TextBlock
from polyptych.storybook.generation import make_examples
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

SETTINGS = SamplingSettings(samples=2, max_new_tokens=6, batch_size=3)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llava()


@pytest.fixture(scope="module")
def processor() -> Any:
    return tiny_llava_processor(max_length=None)


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return list(as_prompts(tiny_examples(6)))


def made_up(count: int = 4, answers: tuple[str, ...] = ("a dog.", "a cat.")) -> list[Responses]:
    return [Responses(prompt, answers, 7) for prompt in as_prompts(tiny_examples(count))]


# Responses


def families() -> list[Any]:
    return [
        pytest.param(tiny_model, tiny_processor, tiny_examples, id="sam"),
        pytest.param(
            lambda: tiny_model("released", zero_init=False),
            lambda: tiny_processor(layout="images_first"),
            tiny_examples,
            id="sam, images first",
        ),
        pytest.param(lambda: tiny_model(decoder="opt"), tiny_processor, tiny_examples, id="opt"),
        pytest.param(tiny_cheetah, tiny_processor, tiny_examples, id="cheetah"),
        pytest.param(tiny_llava, tiny_llava_processor, tiny_examples, id="llava"),
        pytest.param(tiny_camml, tiny_camml_processor, tiny_shot_examples, id="camml"),
    ]


@pytest.mark.parametrize(("make", "process", "examples"), families())
def test_the_first_answer_is_greedy_and_no_answer_depends_on_its_batch(
    make: Any, process: Any, examples: Any
) -> None:
    """Mixed numbers of images, left padding, copies of the cache: nothing of it may show."""
    model, processor, asked = make(), process(), examples(4)
    seeds = [prompt_seed(0, example.id) for example in asked]
    together = draw_candidates(model, processor, asked, seeds, SETTINGS)
    greedy = answer(model, processor, asked, GenerationSettings(max_new_tokens=6))
    assert [texts[0] for texts in together] == greedy
    more = dataclasses.replace(SETTINGS, samples=3)
    for example, seed, texts in zip(asked, seeds, together, strict=True):
        alone = draw_candidates(model, processor, [example], [seed], more)[0]
        assert alone[:3] == texts
    assert len({texts[1:] for texts in together}) > 1
    assert any(texts[1] != texts[2] for texts in together)


def test_images_and_prompt_are_read_once_for_all_answers(model: Any, processor: Any) -> None:
    rows: list[tuple[int, int]] = []
    images: list[int] = []
    hooks = [
        model.language_model.register_forward_pre_hook(
            lambda _, __, kwargs: rows.append(tuple(kwargs["inputs_embeds"].shape[:2])),
            with_kwargs=True,
        ),
        model.vision_encoder.register_forward_pre_hook(lambda _, a: images.append(len(a[0]))),
    ]
    examples = tiny_examples(3)
    draw_candidates(model, processor, examples, [1, 2, 3], SETTINGS)
    for hook in hooks:
        hook.remove()
    assert images == [sum(len(example.images) for example in examples)]
    assert rows[0][0] == 3 and rows[0][1] > 1
    assert all(shape == (9, 1) for shape in rows[1:])


def test_drawing_inverts_the_distribution_of_the_nucleus() -> None:
    """0.5, 0.3 and 0.2 with top_p 0.7: the first two, 5/8 to 3/8."""
    logits = torch.tensor([0.3, 0.5, 0.2]).log().repeat(4, 1)
    numbers = torch.tensor([0.0, 0.62, 0.63, 0.999])
    assert draw_tokens(logits, numbers, 1.0, 0.7).tolist() == [1, 1, 0, 0]
    assert draw_tokens(logits, numbers, 1.0, 0.4).tolist() == [1, 1, 1, 1]
    assert draw_tokens(logits, numbers, 1.0, 1.0).tolist() == [1, 0, 0, 2]
    # temperature 0.5 squares: 25/38, 9/38, 4/38
    assert draw_tokens(logits, torch.tensor([0.65, 0.66, 0.89, 0.9]), 0.5, 1.0).tolist() == [
        1,
        0,
        0,
        2,
    ]


def test_settings_that_cannot_sample_are_refused() -> None:
    with pytest.raises(PolyptychError, match=r"at temperature 0 and top_p 0\.9"):
        SamplingSettings(temperature=0)


def test_a_killed_stage_goes_on_without_redoing_or_losing_a_line(
    model: Any,
    processor: Any,
    prompts: list[Prompt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = self_generate(
        model, processor, prompts, tmp_path / "whole.jsonl", settings=SETTINGS, progress=False
    )
    asked: list[str] = []

    def dying(*args: Any) -> Any:
        if len(asked) >= 3:
            raise KeyboardInterrupt
        asked.extend(example.id for example in args[2])
        return draw_candidates(*args)

    out = tmp_path / "killed.jsonl"
    monkeypatch.setattr(responses, "draw_candidates", dying)
    with pytest.raises(KeyboardInterrupt):
        self_generate(model, processor, prompts, out, settings=SETTINGS, progress=False)
    running = tmp_path / "killed.jsonl.running"
    kept = running.read_bytes()
    assert kept.count(b"\n") == 3 and not out.exists()
    running.write_bytes(kept + b'{"id": "tiny-')  # the kill came in the middle of a line

    def counting(*args: Any) -> Any:
        asked.extend(example.id for example in args[2])
        return draw_candidates(*args)

    monkeypatch.setattr(responses, "draw_candidates", counting)
    resumed = self_generate(model, processor, prompts, out, settings=SETTINGS, progress=False)
    assert sorted(asked) == sorted(prompt.id for prompt in prompts)
    assert [item.answers for item in resumed] == [item.answers for item in whole]
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not running.exists()


def test_a_run_with_another_model_seed_or_prompt_is_refused(
    model: Any, processor: Any, prompts: list[Prompt], tmp_path: Path
) -> None:
    out = tmp_path / "responses.jsonl"

    def run(some: Any = model, asked: Any = prompts, **changed: Any) -> list[Responses]:
        settings = dataclasses.replace(SETTINGS, **changed)
        return self_generate(some, processor, asked, out, settings=settings, progress=False)

    made = run()
    assert made[0].seed == prompt_seed(0, "tiny-0")
    assert run(batch_size=5) == made, "the size of a batch changes nothing"
    with pytest.raises(PolyptychError, match=r"other settings\.seed \(0, now 1\)"):
        run(seed=1)
    with pytest.raises(PolyptychError, match="begun with other model"):
        run(tiny_llava(seed=1))
    with pytest.raises(PolyptychError, match="id 'tiny-5' is none of 5 prompts"):
        run(asked=prompts[:5])
    other = dataclasses.replace(prompts[0], ground_truth="another truth")
    with pytest.raises(PolyptychError, match="'tiny-0' was made of another 'ground_truth'"):
        run(asked=[other, *prompts[1:]])
    (tmp_path / "responses.run.json").unlink()
    with pytest.raises(PolyptychError, match=r"without responses\.run\.json"):
        run()
    assert read_responses(out) == made


# Critic


def reading_cases(processor: Any) -> list[Case]:
    """Cases of 0 to 3 images and 2 or 3 rows, which begin alike and end differently."""
    forced = processor.tokenizer(" a red", add_special_tokens=False)["input_ids"]
    cases = []
    for number, example in enumerate(tiny_examples(4)):
        question = "a tree. the ball runs. " * (number + 1)
        rows = []
        for ending in ("a red ball.", "the dog sleeps under the tree.", "mia")[: 2 + number % 2]:
            blocks = [ImageBlock()] * len(example.images)
            content = (TextBlock("the dog sleeps. "), *blocks, TextBlock(question + ending))
            row = processor.encode(
                dataclasses.replace(example, messages=(Message("user", content),)),
                with_target=False,
            )
            rows.append(
                dataclasses.replace(
                    row,
                    input_ids=row.input_ids + forced,
                    labels=row.labels + [IGNORE_INDEX] * len(forced),
                )
            )
        cases.append(Case(example.id, example.images, tuple(rows)))
    return cases


@pytest.mark.parametrize(
    ("make", "process", "fixed", "stems"),
    [
        pytest.param(lambda: tiny_model(zero_init=False), tiny_processor, True, False, id="sam"),
        pytest.param(
            lambda: tiny_model(zero_init=False, instruction_aware=False),
            tiny_processor,
            True,
            True,
            id="sam that reads no instruction",
        ),
        pytest.param(
            lambda: tiny_model("released", zero_init=False),
            lambda: tiny_processor(layout="images_first"),
            False,
            False,
            id="sam, images first",
        ),
        pytest.param(lambda: tiny_model(decoder="gpt2"), tiny_processor, True, False, id="gpt2"),
        pytest.param(lambda: tiny_model(decoder="opt"), tiny_processor, True, False, id="opt"),
        pytest.param(tiny_cheetah, tiny_processor, True, False, id="cheetah"),
        pytest.param(tiny_llava, tiny_llava_processor, True, True, id="llava"),
        pytest.param(tiny_camml, tiny_camml_processor, True, True, id="camml"),
    ],
)
@torch.inference_mode()
def test_shared_beginnings_change_no_logit(
    make: Any, process: Any, fixed: bool, stems: bool
) -> None:
    """Against every row read alone; cases come in two batches, the fixed part is read once."""
    model, processor = make(), process()
    cases = reading_cases(processor)
    reader = SharedReader(model, processor)
    found = [*reader.last_logits(cases[:2]), *reader.last_logits(cases[2:])]
    for case, logits in zip(cases, found, strict=True):
        for row, shared in zip(case.rows, logits, strict=True):
            batch: Any = Collator(processor, training=False).pad([row])
            if case.images:
                pictures = [load_image(image) for image in case.images]
                batch["pixel_values"] = processor.pixels(pictures)
            alone = model(**batch).logits[0, -1]
            assert alone.abs().max() > 0.01
            torch.testing.assert_close(shared, alone, atol=2e-6, rtol=0)
    start = len(reader._fixed_ids)
    ends = [len(common_prefix(row.input_ids[:-1] for row in case.rows)) for case in cases]
    assert (start > 3) == fixed
    assert reader._keeps_beginnings(cases, start, ends) == stems


def test_swapping_the_answers_turns_the_margin_around(model: Any, processor: Any) -> None:
    """Both orders are read for each pair, so that no place is preferred."""
    judge = LikelihoodJudge(model, processor, CriticRows(CriticFormat(BRIEF)))
    forward, back = (
        [Contest(item, (1,)) for item in made_up(answers=answers)]
        for answers in (("a dog.", "a red cat."), ("a red cat.", "a dog."))
    )
    ahead, behind = judge.compare(forward), judge.compare(back)
    for (first,), (second,) in zip(ahead, behind, strict=True):
        assert first is not None and second is not None
        assert len(first.orders) == 2 and first.orders[0] != first.orders[1]
        assert first.margin == pytest.approx(-second.margin, abs=1e-5)
        assert 0 < first.mass < 1


def test_a_margin_is_the_log_odds_of_the_two_verdict_tokens(model: Any, processor: Any) -> None:
    rows = CriticRows(CriticFormat(FULL))
    judge = LikelihoodJudge(model, processor, rows)
    contest = Contest(made_up(1)[0], (1,))
    ((comparison,),) = judge.compare([contest])
    expected = []
    for example, sign in zip(rows.examples(contest, 1), (1, -1), strict=True):
        row = critic_rows.encode_whole(processor, example, judge.forced)
        batch: Any = Collator(processor, training=False).pad([row])
        batch["pixel_values"] = processor.pixels([load_image(i) for i in example.images])
        with torch.inference_mode():
            scores = model(**batch).logits[0, -1].log_softmax(-1)
        expected.append(sign * float(scores[judge.verdicts[0]] - scores[judge.verdicts[1]]))
    assert comparison.orders == pytest.approx(expected, abs=1e-5)
    assert processor.tokenizer.decode([judge.verdicts[0]]).strip() == "1"


def test_verdict_tokens_that_look_alike_are_refused() -> None:
    class Deaf:
        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [1, 2]}

    with pytest.raises(PolyptychError, match="alike"):
        verdict_tokens(Deaf(), "[[")


class Parrot:
    """Says the same about everything, or what a function of the prompt's text says."""

    name, hash, tokens_per_image, ignores = "parrot", "0", 0, frozenset[str]()

    def __init__(self, says: Any) -> None:
        self.says = says

    def answer(self, examples: Any, settings: Any) -> list[str]:
        return [self.says(example.prompt[0].text) for example in examples]

    def context(self) -> dict[str, Any]:
        return {}


def test_written_verdicts_are_parsed_and_a_bias_for_a_place_cancels() -> None:
    def prefers_dogs(text: str) -> str:
        case = text.rpartition("Your task:")[2]
        return f"The better: [[{1 if 'response 1: [a dog.]' in case else 2}]]."

    contests = [Contest(item, (1,)) for item in made_up(2)]

    def margins(says: Any, both: bool = True) -> list[float | None]:
        judge = WordsJudge(Parrot(says), CriticRows(CriticFormat(), both))
        return [found[0].margin for found in judge.compare(contests) if found[0] is not None]

    assert margins(prefers_dogs) == [-1.0, -1.0]
    assert margins(lambda text: "[[1]]") == [0.0, 0.0]
    assert margins(lambda text: "[[1]]", both=False) == [1.0, 1.0]
    assert margins(lambda text: "I cannot tell.") == [None, None]


def test_the_critic_is_told_what_its_format_says() -> None:
    contest = Contest(made_up(1)[0], (1,))
    first, second = CriticRows(CriticFormat()).examples(contest, 1)
    text = first.prompt[0].text
    assert "Object description" in text and "Ground truth: [a red ball.]" in text
    assert text.index("response 1: [a cat.]") < text.index("response 2: [a dog.]")
    assert "response 1: [a dog.]" in second.prompt[0].text
    assert isinstance(first.prompt[0].content[0], TextBlock), "what is fixed stands first"
    bare = CriticRows(CriticFormat(metrics=False, ground_truth=False), False)
    (only,) = bare.examples(contest, 1)
    assert "Object description" not in only.prompt[0].text
    assert "round truth" not in only.prompt[0].text
    (released,) = CriticRows(CriticFormat(released_order=True), False).examples(contest, 1)
    assert isinstance(released.prompt[0].content[0], ImageBlock)
    assert CriticFormat().fingerprint != CriticFormat(metrics=False).fingerprint


def test_a_case_that_does_not_fit_is_counted_and_never_cut(model: Any, tmp_path: Path) -> None:
    small = tiny_llava_processor(max_length=500)
    assert default_format(small).prompt is BRIEF
    items = made_up(2, ("a dog.", "a cat.", "the dog sleeps. " * 200))
    judge = LikelihoodJudge(model, small)
    verdicts = self_critic(judge, items, tmp_path / "verdicts.jsonl", progress=False)
    assert [[c.candidate for c in v.comparisons] for v in verdicts] == [[1], [1]]
    assert verdicts[0].dropped == {critic.TOO_LONG: 1}


def test_without_a_ground_truth_the_critic_names_the_prompt(model: Any, processor: Any) -> None:
    bare = [dataclasses.replace(i, prompt=Prompt(i.prompt.example)) for i in made_up(1)]
    with pytest.raises(PolyptychError, match="id 'tiny-0' has no ground truth"):
        LikelihoodJudge(model, processor).compare([Contest(bare[0], (1,))])


def test_a_killed_critic_goes_on_and_another_judge_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, out = made_up(6), tmp_path / "verdicts.jsonl"
    whole = self_critic(RandomJudge(), items, tmp_path / "whole.jsonl", progress=False)
    judged: list[str] = []
    compare = RandomJudge.compare

    def dying(self: RandomJudge, contests: Any) -> Any:
        if len(judged) == 4:
            raise KeyboardInterrupt
        judged.extend(contest.id for contest in contests)
        return compare(self, contests)

    monkeypatch.setattr(RandomJudge, "compare", dying)
    with pytest.raises(KeyboardInterrupt):
        self_critic(RandomJudge(), items, out, batch_size=2, progress=False)
    monkeypatch.setattr(RandomJudge, "compare", compare)
    with pytest.raises(PolyptychError, match=r"begun with other seed \(0, now 3\)"):
        self_critic(RandomJudge(3), items, out, progress=False)
    assert self_critic(RandomJudge(), items, out, progress=False) == whole
    assert read_verdicts(out) == whole


# Pairs


def test_equal_and_empty_answers_are_not_compared() -> None:
    assert comparable(("a dog.", "A dog. ", "", "a cat.", "a cat.")) == (
        (3,),
        {critic.IDENTICAL: 2, critic.EMPTY: 1},
    )
    assert comparable((" ", "a cat.")) == ((), {critic.EMPTY: 1})


def test_the_best_answer_is_paired_with_the_worst_and_every_drop_is_counted(
    tmp_path: Path,
) -> None:
    items = made_up(6, ("greedy", "one", "two", "three"))
    none: dict[str, int] = {}
    verdicts = [
        Verdict(items[0], (Comparison(1, (1.0, 2.0)), Comparison(2, (-1.0, -3.0))), none),
        Verdict(items[1], (Comparison(1, (1.0, 2.0)), Comparison(2, (4.0, 4.0))), none),
        Verdict(items[2], (Comparison(1, (1.0, -1.0)),), none),
        Verdict(items[3], (Comparison(1, (None,), ("hm",)),), none),
        Verdict(items[4], (), {critic.IDENTICAL: 3}),
        Verdict(items[5], (Comparison(1, (-0.2, -0.2)),), none),
    ]
    found = build_pairs(verdicts, min_margin=0.5)
    assert [(p.id, p.chosen, p.rejected) for p in found.pairs] == [
        ("tiny-0", "one", "two"),
        ("tiny-1", "two", "greedy"),
    ]
    assert found.pairs[0].metadata["margin"] == 3.5
    assert found.summary["dropped"] == {
        "margin too small": 2,
        "no verdict": 1,
        "identical answers": 1,
    }
    assert len(found.pairs) + len(found.drops) == len(verdicts)
    with pytest.raises(PolyptychError, match=r"0 pairs of 1 prompts \(1 no verdict\)"):
        require_pairs(build_pairs(verdicts[3:4]))
    verdicts = self_critic(RandomJudge(), items, tmp_path / "verdicts.jsonl", progress=False)
    write_pair_files(build_pairs(verdicts), tmp_path)
    assert read_pairs(tmp_path / "pairs.jsonl")[0].images[0].path is not None
    assert json.loads((tmp_path / "pairs.json").read_text())["pairs"] == 6


# Truth

ABOUT = {
    "task": "description",
    "scenes": [],
    "place": "beach",
    "things": ["a small red ball", "a waving person in a blue shirt with long black hair"],
}


def test_a_description_is_as_true_as_its_facts() -> None:
    """Eight facts: ball, its color, its size; person, act, clothes, hair; place."""
    whole = "On the beach there are a small red ball and a waving person in a blue shirt with "
    assert description_truth(whole + "long black hair.", ABOUT) == 1
    # size and color of the ball, which also name it, are wrong: 6 of 8 on either side
    wrong = whole.replace("small red", "large green") + "long black hair."
    assert description_truth(wrong, ABOUT) == pytest.approx(6 / 8)
    assert description_truth("a small red ball on the beach.", ABOUT) == pytest.approx(8 / 12)
    assert description_truth("two large green trees.", ABOUT) == 0


def test_agreement_counts_comparisons_of_unequally_true_answers() -> None:
    example = Example("d", (Message("user", (TextBlock("What?"),)),), metadata=ABOUT)
    better, worse = "a small red ball", "a small red tree"
    item = Responses(Prompt(example), (worse, better, worse + ".", "a small red bell"), 0)
    right, undecided = Comparison(1, (2.0,)), Comparison(1, (1.0, -1.0))
    equal, wrong = Comparison(2, (9.0,)), Comparison(1, (-0.1,))
    told = agreement([Verdict(item, (right, equal), {}), Verdict(item, (undecided, wrong), {})])
    assert told is not None and told["count"] == 3
    assert told["share"] == pytest.approx(0.5)
    assert agreement([Verdict(made_up(1)[0], (right,), {})]) is None
    ((found, *_),) = TruthJudge().compare([Contest(item, (1, 2))])
    assert found is not None and found.margin > 0
    with pytest.raises(PolyptychError, match="truth of its pictures is not known"):
        TruthJudge().compare([Contest(made_up(1)[0], (1,))])


# Prompts


def test_prompts_of_the_released_form_and_native_records(tmp_path: Path) -> None:
    for name in ("7.png", "8.png"):
        (tmp_path / name).write_bytes(tiny_examples(1)[0].images[0].data or b"")
    line = {"image": "7.png", "text": "What is on the mat?", "ground_truth": "A dog."}
    two = {"images": ["7.png", "8.png"], "text": "In <image> and <image>?", "id": "both"}
    native = {
        "id": "n",
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        ],
        "images": ["8.png"],
    }
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, [line, line, two, native])) + "\n")
    first, again, both, record = read_prompts(path)
    assert len(first.id) == 12 and again.id == f"{first.id}-2"
    assert first.ground_truth == "A dog." and both.ground_truth is None
    assert [type(b).__name__ for b in both.example.messages[0].content] == [
        *("TextBlock", "ImageBlock", "TextBlock", "ImageBlock", "TextBlock")
    ]
    assert record.ground_truth == "A cat." and record.example.target is None


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 1: not valid JSON"),
        ("[]", "line 1: expected a JSON object, got list"),
        ('{"image": "none.png", "text": "What?"}', r"line 1: image \S*none.png does not exist"),
        ('{"image": "7.png", "text": "W", "ground_truth": " "}', "the ground truth is empty"),
        ('{"image": "7.png", "text": " "}', "line 1: empty instruction"),
        ('{"image": "7.png", "text": "<image> and <image>?"}', r"2 image placeholder\(s\)"),
        ('{"image": ["7.png"], "text": "What?"}', "'image' must be a file name"),
        ('{"image": "7.png"}', "'text' must be a string, got NoneType"),
        ("", "no prompts in it"),
    ],
)
def test_bad_prompts_are_one_clear_line(line: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "7.png").write_bytes(b"")
    path = tmp_path / "prompts.jsonl"
    path.write_text(line + "\n" if line else "")
    with pytest.raises(PolyptychError, match=problem):
        read_prompts(path)


# Practice


def test_practice_asks_in_the_critics_own_words_and_the_truth_decides() -> None:
    examples = list(critic_examples(count=40, split="train", seed=0))
    verdicts = [example.target for example in examples]
    assert 10 < verdicts.count("1") < 30 and set(verdicts) == {"1", "2"}
    pictures = list(make_examples("description", count=40, split="train", seed=0, things=(2, 4)))
    for example, story in zip(examples, pictures, strict=True):
        shown = example.prompt[0].text.rpartition("True: [")[2]
        truth, first, second = shown.replace("]\n", "").replace("2: [", "1: [").split("1: [")
        assert description_truth(truth, story.metadata) == 1
        values = [description_truth(text, story.metadata) for text in (first, second)]
        assert (values[0] > values[1]) == (example.target == "1") and values[0] != values[1]


def test_spoiling_exchanges_words_of_one_sort() -> None:
    text = "on the beach there are an orange ball and a small red kite."
    assert spoil(random.Random(0), text, 0) == text
    for seed in range(20):
        spoiled = spoil(random.Random(seed), text, 2)
        assert spoiled != text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", spoiled)
