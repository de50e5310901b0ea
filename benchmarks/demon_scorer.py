"""Time of both DEMON scorers over made-up answers in the proportions of DEMON-Core.

    OMP_NUM_THREADS=1 python benchmarks/demon_scorer.py --answers 50000

Texts are drawn, not read: words from a vocabulary of 8,000 with Zipf frequencies; references and
answers of 5 to 40 words for the ROUGE-L tasks; four choices of 1 to 12 words (or numbers, or True
and False) for the others, answered by a choice, its letter, a sentence around it, a paraphrase, or
something else. CPU seconds of one process, caches empty at the start of each round.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time

from polyptych.evaluation.demon import answers, fixed, released
from polyptych.evaluation.demon.catalog import Dataset, datasets_of
from polyptych.evaluation.demon.scorer import demon_scorer
from polyptych.schema import Example, Message, Prediction, TextBlock

VOCABULARY = 8_000


class Words:
    """A vocabulary and a source of chance."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        letters = "eeeeetttaaaooiinnsshhrdlucmfwygpbvk"
        self.words = [
            "".join(self.rng.choices(letters, k=self.rng.randint(2, 9))) for _ in range(VOCABULARY)
        ]
        self.weights = [1 / rank for rank in range(1, VOCABULARY + 1)]

    def text(self, least: int, most: int) -> str:
        """A sentence of so many words."""
        words = self.rng.choices(self.words, self.weights, k=self.rng.randint(least, most))
        return " ".join(words).capitalize() + self.rng.choice((".", "", ", too.", "!"))


def draw_item(words: Words, dataset: Dataset) -> tuple[str, str, tuple[str, ...]]:
    """Answer, reference and choices of one item."""
    rng = words.rng
    if dataset.rule == "rouge_l":
        reference = words.text(5, 40)
        kept = [word for word in reference.split() if rng.random() < 0.6]
        return " ".join(kept) + " " + words.text(2, 20), reference, ()
    if dataset.rule == "image_choice":
        choices = tuple(f"Image {letter}: {{image#{k}}}" for k, letter in enumerate("ABCD", 4))
        said = rng.choice(("Image {}", "The answer is Image {}.", "{}", "Image {} or Image A", ""))
        return said.format(rng.choice("ABCD")), f"Image {rng.choice('ABCD')}", choices
    kind = rng.random()
    if kind < 0.2:
        choices = ("True", "False")
    elif kind < 0.3:
        choices = tuple(map(str, range(7)))
    else:
        choices = tuple(words.text(1, 12) for _ in range(4))
    reference = rng.choice(choices)
    picked = rng.choice(choices)
    shuffled = picked.split()
    rng.shuffle(shuffled)
    said = rng.choice(
        (
            picked,
            rng.choice("ABCD"),
            f"The answer is {picked}",
            f"I think that {picked.lower()} is shown, {words.text(5, 20)}",
            " ".join(shuffled),
            words.text(3, 15),
        )
    )
    return said, reference, choices


def draw(count: int, seed: int) -> dict[str, tuple[Dataset, list[Example], list[Prediction]]]:
    words = Words(seed)
    core = datasets_of("core")
    total = sum(dataset.core_size or 0 for dataset in core)
    sets = {}
    for dataset in core:
        examples, predictions = [], []
        for index in range(round(count * (dataset.core_size or 0) / total)):
            answer, reference, choices = draw_item(words, dataset)
            identity = f"{dataset.name}-{index}"
            message = Message("user", (TextBlock("?"),))
            references = (choices[0] if dataset.name == "RecipeQA_VisualCloze" else reference,)
            examples.append(Example(identity, (message,), references=references, choices=choices))
            predictions.append(Prediction(identity, answer))
        sets[dataset.name] = (dataset, examples, predictions)
    return sets


def empty_caches() -> None:
    for cached in (answers.words_of, answers.normal_words, answers._own_labels, released._counts):
        cached.cache_clear()


def seconds(sets: dict[str, tuple[Dataset, list[Example], list[Prediction]]]) -> dict[str, float]:
    empty_caches()
    start = time.process_time()
    for dataset, examples, predictions in sets.values():
        assert len(demon_scorer(dataset)(examples, predictions)) == 2, dataset.name
    both = time.process_time() - start
    times = {"both": both}
    for name, module in (("released", released), ("fixed", fixed)):
        empty_caches()
        start = time.process_time()
        for dataset, examples, predictions in sets.values():
            rule = dataset.released_rule if module is released else dataset.rule
            for example, prediction in zip(examples, predictions, strict=True):
                module.score_item(rule, prediction.text, example.references[0], example.choices)
        times[name] = time.process_time() - start
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    sets = draw(options.answers, options.seed)
    count = sum(len(examples) for _, examples, _ in sets.values())
    rounds = [seconds(sets) for _ in range(options.repeats)]
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    for name in rounds[0]:
        times = [one[name] for one in rounds]
        print(
            f"{count} answers, {name}: median {statistics.median(times):.2f} s,"
            f" best {min(times):.2f} s of CPU time"
        )


if __name__ == "__main__":
    main()
