"""Time of tokenizing and scoring captions: CIDEr, BLEU-1 to BLEU-4 and ROUGE-L in one call.

    OMP_NUM_THREADS=1 python benchmarks/metrics.py --items 100000 --references 1 5

Captions are drawn, not read: 4 to 17 words (10.5 on average, as in COCO) from a vocabulary of
20,000 with Zipf frequencies, a third capitalized at the start, most with a full stop, some with
commas, hyphens, apostrophes or quotes. All are distinct. CPU seconds of one process; the
tokenizer's memory of chunks is emptied before each round.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from itertools import islice

import numpy as np

from polyptych.evaluation.metrics import compute, ptb_tokenizer

METRICS = ("cider", "bleu", "rouge_l")
VOCABULARY = 20_000


def draw_captions(count: int, rng: np.random.Generator) -> list[str]:
    letters = np.array(list("eeeeetttaaaooiinnsshhrdlucmfwygpbvk"))
    words = ["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(VOCABULARY)]
    frequency = 1 / np.arange(1, VOCABULARY + 1)
    decorate = (
        [str] * 40
        + [lambda word: word + ","] * 2
        + [lambda word: word + "'s", lambda word: word + "-made", lambda word: f'"{word}"']
    )
    captions: set[str] = set()
    while len(captions) < count:
        lengths = rng.integers(4, 18, count - len(captions))
        drawn = rng.choice(VOCABULARY, lengths.sum(), p=frequency / frequency.sum()).tolist()
        styles = rng.integers(0, len(decorate), lengths.sum()).tolist()
        dressed = iter([decorate[s](words[w]) for w, s in zip(drawn, styles, strict=True)])
        for length, chance in zip(lengths, rng.random((len(lengths), 2)), strict=True):
            text = " ".join(islice(dressed, int(length)))
            text = text.capitalize() if chance[0] < 1 / 3 else text
            captions.add(text + "." if chance[1] < 0.8 else text)
    return list(captions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--references", type=int, nargs="+", default=[1, 5], help="per item")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    for per_item in options.references:
        captions = draw_captions(options.items * (1 + per_item), np.random.default_rng(0))
        predictions = captions[: options.items]
        references = [
            captions[start : start + per_item]
            for start in range(options.items, len(captions), per_item)
        ]
        seconds = []
        for _ in range(options.repeats):
            ptb_tokenizer._lex_chunk.cache_clear()
            start = time.process_time()
            scores = compute(METRICS, predictions, references)
            seconds.append(time.process_time() - start)
        print(
            f"{options.items} items, {per_item} reference(s), {len(scores)} metrics:"
            f" median {statistics.median(seconds):.2f} s, best {min(seconds):.2f} s of CPU time"
        )


if __name__ == "__main__":
    main()
