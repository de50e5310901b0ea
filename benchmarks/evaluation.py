"""Time of evaluation: every scorer, batches against one by one, and what the runner adds.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py                       # all parts
    OMP_NUM_THREADS=1 python benchmarks/evaluation.py scorers --items 100000

``scorers``: examples and answers are drawn, not read; CPU seconds of one process for the scorer
itself, and for the values and intervals (2,000 resamples) of all metrics that it gives.
``batch``: 16 examples on a bundled model, in one batch and one by one: Storybook's four tasks with
one to five pictures each, and two questions from the samples of each of eight benchmarks.
``overhead``: the same model over more of the first through ``polyptych.evaluation.runner``; time
outside the model over time inside. ``report``: the page of a run of 10,000 items.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from polyptych.data.records import read_records
from polyptych.evaluation.metrics import ptb_tokenizer
from polyptych.evaluation.scorers import Scorer, caption_scorer, estimate
from polyptych.evaluation.scoring.amber import amber_scorer
from polyptych.evaluation.scoring.amber_files import (
    QUESTION_FLAVORS,
    AmberWords,
    description_scorer,
    question_scorer,
)
from polyptych.evaluation.scoring.boxes import box_scorer
from polyptych.evaluation.scoring.chair import FLAVORS as CHAIR_FLAVORS
from polyptych.evaluation.scoring.chair import chair_scorer, storybook_words
from polyptych.evaluation.scoring.choice import (
    FLAVORS as CHOICE_FLAVORS,
)
from polyptych.evaluation.scoring.choice import (
    choice_scorer,
    circular_scorer,
    grouped_choice_scorer,
)
from polyptych.evaluation.scoring.short_answer import FLAVORS as EXACT_FLAVORS
from polyptych.evaluation.scoring.short_answer import exact_scorer
from polyptych.evaluation.scoring.vqa_accuracy import FLAVORS as VQA_FLAVORS
from polyptych.evaluation.scoring.vqa_accuracy import normalize_answer, vqa_scorer
from polyptych.evaluation.scoring.yes_no import FLAVORS as YES_NO_FLAVORS
from polyptych.evaluation.scoring.yes_no import mme_scorer, pope_scorer, statement_scorer
from polyptych.evaluation.task import GenerationSettings, Judging, Task
from polyptych.evaluation.tasks import blink, llava_bench, mirb, mm_vet, mme, mmhal
from polyptych.evaluation.tasks.catalog import BENCHMARKS
from polyptych.evaluation.tasks.mantis_eval import FLAVORS as MANTIS_FLAVORS
from polyptych.evaluation.tasks.mantis_eval import mantis_scorer
from polyptych.schema import Example, Message, Prediction, TextBlock
from polyptych.storybook.generation import (
    RECORDS_FILE,
    make_examples,
    to_example,
    write_dataset,
)
from polyptych.storybook.vocabulary import KINDS as THINGS

VOCABULARY = 20_000
LIMIT = 20.0
"""CPU seconds that a scorer of 100,000 predictions may take."""

Item = tuple[Example, str]
_QUESTION = (Message("user", (TextBlock("?"),)),)


# Drawn items.


class Words:
    """A vocabulary with Zipf frequencies."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        letters = "eeeeetttaaaooiinnsshhrdlucmfwygpbvk"
        self.words = [
            "".join(self.rng.choices(letters, k=self.rng.randint(2, 9))) for _ in range(VOCABULARY)
        ]
        self.weights = [1 / rank for rank in range(1, VOCABULARY + 1)]
        self.drawn: Iterator[str] = iter(())

    def text(self, least: int, most: int) -> str:
        """So many words, the first one with a capital."""
        count = self.rng.randint(least, most)
        found = list(islice(self.drawn, count))
        if len(found) < count:
            self.drawn = iter(self.rng.choices(self.words, self.weights, k=1 << 16))
            found += islice(self.drawn, count - len(found))
        return " ".join(found).capitalize() + self.rng.choice((".", "", ", too.", "!"))


def item(
    number: int, references: Sequence[str], choices: Sequence[str] = (), **more: Any
) -> Example:
    return Example(
        str(number),
        _QUESTION,
        references=tuple(references),
        choices=tuple(choices),
        metadata=more,
    )


def short_answers(words: Words, count: int) -> Iterator[Item]:
    """Ten human answers, of which some differ."""
    for number in range(count):
        several = [words.text(1, 3) for _ in range(3)]
        humans = words.rng.choices(several, (6, 2, 1), k=10)
        yield item(number, humans), words.rng.choice(several)


def exact_answers(words: Words, count: int) -> Iterator[Item]:
    for number in range(count):
        truth = words.text(1, 2).lower()
        said = truth if words.rng.random() < 0.5 else words.text(1, 2)
        kind = words.rng.choice(("open", "binary"))
        yield item(number, [truth], kind=kind), said


def options(words: Words, count: int) -> Iterator[Item]:
    """Four options; letters, sentences, options' texts and other texts as answers."""
    rng = words.rng
    for number in range(count):
        choices = [words.text(1, 6) for _ in range(4)]
        letter = rng.choice("ABCD")
        said = rng.choice(
            (
                letter,
                f"{letter}. {choices['ABCD'.index(letter)]}",
                f"The answer is {letter}.",
                f"ANSWER: {letter}.",
                rng.choice(choices),
                words.text(4, 20),
            )
        )
        yield (
            item(
                number,
                [rng.choice("ABCD")],
                choices,
                question=number // 4,
                sub_task=rng.choice(blink.SUB_TASKS),
                kind="multi-choice",
            ),
            said,
        )


def yes_no(words: Words, count: int) -> Iterator[Item]:
    rng, names = words.rng, [*mme.PERCEPTION, *mme.COGNITION]
    for number in range(count):
        said = rng.choice(("Yes", "No", "yes.", f"No, {words.text(3, 9)}", words.text(2, 9)))
        yield (
            item(
                number,
                [rng.choice(("yes", "no"))],
                category=names[number // 2 % len(names)],
                kind=names[number % 4],
                pair=number // 2,
                sentence=number // 4,
            ),
            said,
        )


def boxes(words: Words, count: int) -> Iterator[Item]:
    rng = words.rng
    for number in range(count):
        left, top = rng.uniform(0, 300), rng.uniform(0, 200)
        box = (left, top, left + rng.uniform(20, 300), top + rng.uniform(20, 200))
        numbers = ", ".join(f"{rng.random():.2f}" for _ in range(4))
        yield item(number, [], box=box, width=640, height=480), f"[{numbers}]"


def mirb_answers(words: Words, count: int) -> Iterator[Item]:
    names = list(mirb.GROUP_OF)
    for number in range(count):
        truth = words.rng.choice(("3", "yes", "A", words.text(1, 5)))
        yield item(number, [truth], set=names[number % len(names)]), words.text(1, 12)


def descriptions(words: Words, count: int) -> Iterator[Item]:
    """Long captions that name things, five human captions, and what the picture shows."""
    rng, kinds = words.rng, sorted(THINGS)

    def told(most: int) -> str:
        several = [f"{words.text(1, 6)} {rng.choice(kinds)}" for _ in range(rng.randint(1, most))]
        return ", ".join(several) + "."

    for number in range(count):
        objects, likely = rng.sample(kinds, 4), rng.sample(kinds, 3)
        humans = [told(2) for _ in range(5)]
        yield item(number, humans, objects=objects, likely=likely), told(6)


def replies(words: Words, count: int) -> Iterator[Item]:
    """A judge's replies; they are read in place of answers."""
    rng, kinds = words.rng, ("conv", "detail", "complex")
    for number in range(count):
        said = rng.choice(
            (
                f"{rng.randint(1, 10)} {rng.randint(1, 10)}\n{words.text(20, 60)}",
                f"{words.text(20, 60)}\nRating: {rng.randint(0, 6)}",
                f"{rng.random():.1f}",
                words.text(20, 60),
            )
        )
        known = ("gen", "know", "math", "ocr", "rec", "spat")
        abilities = sorted(rng.sample(known, rng.randint(1, 3)))
        yield item(number, ["?"], category=rng.choice(kinds), abilities=abilities), said


def judged(judging: Judging) -> Scorer:
    """What a judge's replies come to, without asking one."""
    return lambda examples, said: judging.measure(examples, [reply.text for reply in said])


def captions(references: int) -> Callable[[Words, int], Iterator[Item]]:
    def draw(words: Words, count: int) -> Iterator[Item]:
        for number in range(count):
            yield item(number, [words.text(4, 17) for _ in range(references)]), words.text(4, 17)

    return draw


CASES: dict[str, tuple[Callable[[Words, int], Iterator[Item]], Scorer]] = {
    **{f"VQA accuracy, {f}": (short_answers, vqa_scorer(f)) for f in VQA_FLAVORS},
    **{f"exact match (GQA), {f}": (exact_answers, exact_scorer(f, "kind")) for f in EXACT_FLAVORS},
    **{f"choice, {f}": (options, choice_scorer(f)) for f in CHOICE_FLAVORS},
    "choice by task (BLINK), fixed": (options, grouped_choice_scorer("fixed", "sub_task")),
    "circular (MMBench), fixed": (options, circular_scorer("fixed")),
    **{f"Mantis-Eval, {f}": (options, mantis_scorer(f)) for f in MANTIS_FLAVORS},
    **{f"POPE, {f}": (yes_no, pope_scorer(f)) for f in YES_NO_FLAVORS},
    "MME": (yes_no, mme_scorer(mme.PARTS)),
    "statements (NLVR2)": (yes_no, statement_scorer()),
    **{f"questions (AMBER), {f}": (yes_no, question_scorer(f)) for f in QUESTION_FLAVORS},
    "boxes (RefCOCO)": (boxes, box_scorer()),
    "MIRB": (mirb_answers, mirb.score_mirb),
    **{
        f"CHAIR, 5 captions as truth, {f}": (descriptions, chair_scorer(storybook_words(), f))
        for f in CHAIR_FLAVORS
    },
    "AMBER's formulas, fixed": (descriptions, amber_scorer(storybook_words())),
    "descriptions (AMBER), words": (
        descriptions,
        description_scorer(AmberWords(dict.fromkeys(THINGS, ("thing",)))),
    ),
    "MM-Vet, grades": (replies, judged(mm_vet.JUDGING)),
    "LLaVA-Bench, grades": (replies, judged(llava_bench.JUDGING)),
    "MMHal-Bench, ratings": (replies, judged(mmhal.JUDGING)),
    **{
        f"{what}, {plural}": (draw, scorer)
        for draw, plural in ((captions(1), "1 reference"), (captions(5), "5 references"))
        for what, scorer in (
            ("CIDEr, BLEU, ROUGE-L [coco]", caption_scorer("cider", "bleu", "rouge_l")),
            (
                "CIDEr, BLEU-4, ROUGE-L [sam]",
                caption_scorer("cider[sam]", "bleu_4[sam]", "rouge_l[sam]"),
            ),
        )
    },
}


def time_scorers(count: int, only: str) -> None:
    print(f"\n| scorer, {count:,} predictions | metrics | scoring, CPU s | with intervals, CPU s |")
    print("| --- | ---: | ---: | ---: |")
    slow, last = [], None
    for name, (draw, scorer) in CASES.items():
        if only not in name:
            continue
        if draw is not last:  # neighbors in the table share their items
            drawn, last = list(draw(Words(0), count)), draw
        examples = [example for example, _ in drawn]
        predictions = [Prediction(example.id, text) for example, text in drawn]
        normalize_answer.cache_clear()
        ptb_tokenizer._lex_chunk.cache_clear()
        start = time.process_time()
        measured = scorer(examples, predictions)
        scoring = time.process_time() - start
        for measurement in measured:
            estimate(measurement)
        total = time.process_time() - start
        print(f"| {name} | {len(measured)} | {scoring:.2f} | {total:.2f} |", flush=True)
        slow += [name] * (scoring > LIMIT)
    print(f"\nscoring over {LIMIT:.0f} s: {', '.join(slow) or 'none'}")


# The bundled model.

KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("existence", {"pictures": (1, 1)}),
    ("group_captioning", {}),
    ("storytelling", {"panels": (3, 5)}),
    ("change_captioning", {}),
)


def mixed_examples(count: int) -> list[Example]:
    """Four tasks in turn."""
    each = -(-count // len(KINDS))
    drawn = [
        [
            to_example(story)
            for story in make_examples(name, count=each, split="test", seed=0, **more)
        ]
        for name, more in KINDS
    ]
    return [example for several in zip(*drawn, strict=True) for example in several][:count]


SAMPLED = ("vqav2", "pope", "mmbench", "coco_caption", "nlvr2", "mirb", "mantis_eval", "sam_vist")


def benchmark_examples(folder: Path) -> list[Example]:
    """The first two questions of each sample."""
    found = []
    for name in SAMPLED:
        benchmark = BENCHMARKS[name]
        assert benchmark.sample is not None
        benchmark.sample(benchmark.root(folder))
        found += list(benchmark.task(folder).load())[:2]
    return found


def load(name: str) -> Any:
    import torch

    from polyptych.serving.answerers import load_answerer

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return load_answerer(name)


def time_batch(name: str, repeats: int, settings: GenerationSettings) -> None:
    answerer = load(name)
    compare_ways(answerer, "Storybook", mixed_examples(16), repeats, settings)
    with tempfile.TemporaryDirectory() as folder:
        examples = benchmark_examples(Path(folder))
        compare_ways(answerer, "samples of benchmarks", examples, repeats, settings)


def compare_ways(
    answerer: Any,
    what: str,
    examples: Sequence[Example],
    repeats: int,
    settings: GenerationSettings,
) -> None:
    ways: dict[str, Callable[[], list[str]]] = {
        "one by one": lambda: [answerer.answer([example], settings)[0] for example in examples],
        "batch of 16": lambda: answerer.answer(examples, settings),
    }
    said: dict[str, list[str]] = {}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, run in ways.items():
            start = time.process_time()
            said[way] = run()
            if turn:  # the first turn warms up
                seconds[way].append(time.process_time() - start)
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    one, batch = medians["one by one"], medians["batch of 16"]
    same = sum(a == b for a, b in zip(*said.values(), strict=True))
    pictures = [len(example.images) for example in examples]
    print(f"\n{answerer.name}, {what}: {sum(pictures)} pictures in {len(examples)} examples,")
    print(f"beams {settings.num_beams}, CPU s:")
    print(f"one by one {one:.2f}, batch {batch:.2f}: {one / batch:.1f} times as fast;")
    print(f"{same} of {len(examples)} answers the same")


class Timed:
    """An answerer that counts the seconds spent inside."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.seconds = inner, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def answer(self, examples: Sequence[Example], settings: GenerationSettings) -> list[str]:
        """Ask the inner one."""
        start = time.process_time()
        texts = self.inner.answer(examples, settings)
        self.seconds += time.process_time() - start
        return texts


def time_runner(name: str, count: int, settings: GenerationSettings) -> None:
    from polyptych.evaluation.runner import evaluate, generate

    examples = mixed_examples(count)
    timed = Timed(load(name))
    timed.answer(examples[:16], settings)
    task = Task("mixed", lambda: examples, (caption_scorer("cider", "rouge_l"),), settings)
    print(f"\n{name}, {count} examples, runner over model, CPU s:")
    for what, run in (
        ("generate", lambda out: generate(timed, examples, out / "a.jsonl", settings=settings)),
        ("evaluate, with the scoring at its end", lambda out: evaluate(timed, task, out)),
    ):
        timed.seconds = 0.0
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            run(Path(folder))
            total = time.process_time() - start
        added = total - timed.seconds
        print(f"{what}: {timed.seconds:.2f} + {added:.3f} = {100 * added / timed.seconds:.2f} %")


class Parrot:
    """Says some references again and again, so that answers of all sorts occur."""

    name, hash, tokens_per_image = "parrot", "", 0
    ignores = frozenset(GenerationSettings.__dataclass_fields__)

    def __init__(self, said: Sequence[str]) -> None:
        self.said = cycle(said)

    def answer(self, examples: Sequence[Example], settings: GenerationSettings) -> list[str]:
        """The next ones."""
        return list(islice(self.said, len(examples)))

    def context(self) -> dict[str, Any]:
        """Its name."""
        return {"model": {"name": self.name, "type": "function", "hash": self.hash}}


def time_report(count: int, settings: GenerationSettings) -> None:
    from polyptych.evaluation.run_report import write_report
    from polyptych.evaluation.runner import evaluate

    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "data")
        write_dataset("group_captioning", written, count=100, split="test", seed=0)
        drawn = list(read_records(written / RECORDS_FILE))
        examples = [replace(drawn[i % len(drawn)], id=f"{i:06d}") for i in range(count)]
        answerer = Parrot([text for example in drawn[:49] for text in example.references])
        task = Task("groups", lambda: examples, (caption_scorer("cider", "rouge_l"),), settings)
        evaluate(answerer, task, Path(folder))
        start = time.process_time()
        page = write_report(folder)
        seconds, size = time.process_time() - start, page.stat().st_size
    print(f"\nreport of {count} items: {seconds:.2f} CPU s, {size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("scorers", "batch", "overhead", "report")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; all")
    parser.add_argument("--items", type=int, default=100_000, help="predictions of each scorer")
    parser.add_argument("--report-items", type=int, default=10_000, help="items of the report")
    parser.add_argument("--only", default="", help="scorers with this in their name")
    parser.add_argument("--model", default="storybook-sam")
    parser.add_argument("--examples", type=int, default=64, help="for the runner")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--beams", type=int, default=1)
    chosen = parser.parse_args()
    if unknown := set(chosen.parts).difference(parts):
        parser.error(f"no part {', '.join(sorted(unknown))}")

    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    settings = GenerationSettings(num_beams=chosen.beams, max_new_tokens=32)
    for part in chosen.parts or parts:
        if part == "scorers":
            time_scorers(chosen.items, chosen.only)
        elif part == "batch":
            time_batch(chosen.model, chosen.repeats, settings)
        elif part == "overhead":
            time_runner(chosen.model, chosen.examples, settings)
        else:
            time_report(chosen.report_items, settings)


if __name__ == "__main__":
    main()
