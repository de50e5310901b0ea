"""The Python PTB tokenizer against answers of the Java one (Stanford 3.4.1, as pycocoevalcap)."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyptych.evaluation.metrics.ptb_tokenizer import PUNCTUATION, ptb_tokenize

# Sentences of our own, with the tokens that the Java program gave for each alone.
CASES = [
    ("A small dog runs after a red ball.", "a small dog runs after a red ball"),
    ("Two cats, one black and one white, sleep!", "two cats one black and one white sleep"),
    ("It's the dog's ball, isn't it?", "it 's the dog 's ball is n't it"),
    (
        "They can't swim, but they'd like to; we won't.",
        "they ca n't swim but they 'd like to we wo n't",
    ),
    (
        "I cannot go, I'm gonna stay and lemme rest.",
        "i can not go i 'm gon na stay and lem me rest",
    ),
    ("The girls' bikes (both red) are here.", "the girls bikes -lrb- both red -rrb- are here"),
    ('A "closed" sign hangs on the door...', "a closed sign hangs on the door"),
    ("What?! No way!!", "what ?! no way !!"),
    (
        "A well-known, six-year-old boy - quite tall - waves.",
        "a well-known six-year-old boy quite tall waves",
    ),
    ("He waits -- then runs.", "he waits then runs"),
    (
        "Mr. and Mrs. Green met Dr. Lee on Main St. at 5 p.m.",
        "mr. and mrs. green met dr. lee on main st. at 5 p.m.",
    ),
    ("The U.S. flag, e.g. on a pole, etc.", "the u.s. flag e.g. on a pole etc."),
    ("Flight no. 7 leaves; the answer is no.", "flight no. 7 leaves the answer is no"),
    ("Bus No. 12 stops at 10:30am near 3/4 mile.", "bus no. 12 stops at 10:30 am near 3/4 mile"),
    ("It costs $3.50, not 1,200 or 50%.", "it costs $ 3.50 not 1,200 or 50 %"),
    ("Add 1 1/2 cups of milk.", "add 1\xa01/2 cups of milk"),
    ("Call (555) 123-4567 now.", "call -lrb-555-rrb-\xa0123-4567 now"),
    ("AT&T and R&B and cats&dogs", "at&t and r&b and cats & dogs"),
    ("and/or his/her w/o a/c", "and/or his/her w/o a/c"),
    (
        "o'clock O'Brien ma'am y'all d'you 'em 'til '90s",
        "o'clock o'brien ma'am y' all d'you 'em 'til '90s",
    ),
    ("rock'n'roll jack-o'-lantern 'tis", "rock 'n' roll jack-o lantern 't is"),
    ("a_b_c _x_ snake_case", "a_b_c _ x _ snake_case"),
    ("x = y + 2*z", "x = y + 2 * z"),
    (
        "see www.example.com or mail me@example.org, please",
        "see www.example.com or mail me@example.org, please",
    ),
    ("end.Next sentence", "end.next sentence"),
    ('<br> a tag <b c="d e"> and 3 < 5', '<br> a tag <b\xa0c="d\xa0e"> and 3 < 5'),
    ("a smile :) and a wink ;-)", "a smile :-rrb- and a wink ;--rrb-"),
    ("#sunset @photographer #1", "#sunset @photographer # 1"),
    ("“Stop”, it’s a ‘sign’ — don’t go…", "stop it 's a sign do n't go"),
    ("Café Ångström naïve 日本語", "café ångström naïve 日本語"),
    ("a 🐶 dog and a ☃ snowman", "a dog and a ☃ snowman"),
    ("½ cup for £5 or €6 and 20¢", "1/2 cup for # 5 or $ 6 and 20 cents"),
    ("80°F and km² and H₂O", "80 ° f and km ² and h ₂ o"),
    ("re\xadacts", "reacts"),
    ("line one\nline two", "line one line two"),
    ("[left] {middle}", "-lsb- left -rsb- -lcb- middle -rcb-"),
    ("A B. C. The dog", "a b. c the dog"),
    ("Option B. A dog sits. Option c. a cat", "option b a dog sits option c. a cat"),
    ("tabs\tand  spaces", "tabs and spaces"),
    ("", ""),
    ("...", ""),
    ("C-130 and 747-400, 2nd 3D t-shirts", "c-130 and 747-400 2nd 3d t-shirts"),
    ("Look!Here and what?No", "look!here and what?no"),
    ("the '90s-style 1950's car, a 5'10 man", "the '90s style 1950 's car a 5 '10 man"),
]


@pytest.mark.parametrize(("text", "tokens"), CASES)
def test_tokens(text, tokens):
    assert " ".join(ptb_tokenize(text)) == tokens


def test_fractions_and_phone_numbers_are_one_token():
    assert ptb_tokenize("add 1 1/2 cups") == ["add", "1\xa01/2", "cups"]
    assert ptb_tokenize("(555) 123-4567") == ["-lrb-555-rrb-\xa0123-4567"]


def test_the_next_caption_matters_only_when_asked_for():
    assert ptb_tokenize("option C.") == ["option", "c."]
    assert ptb_tokenize("option C.", following="The dog runs") == ["option", "c"]
    assert ptb_tokenize("option C.", following="the dog runs") == ["option", "c."]


@given(st.text(max_size=60))
def test_any_text(text):
    tokens = ptb_tokenize(text)
    assert not PUNCTUATION & set(tokens)
    for token in tokens:
        assert token
        assert "\xa0" in token or len(token.split()) == 1


@given(st.lists(st.sampled_from(["a", "dog's", "(b)", "don't", "x-y", "3,5", "why?"])))
def test_words_stand_for_themselves(words):
    expected = [token for word in words for token in ptb_tokenize(word)]
    assert ptb_tokenize("  ".join(words)) == expected


# --- the Java program itself ---------------------------------------------------------------------


def java_tokens(texts: list[str], tmp_path: Path) -> list[str]:
    """Tokens joined by blanks, one line per text, all read from one file."""
    package = importlib.util.find_spec("pycocoevalcap")
    jar = os.environ.get("PTB_TOKENIZER_JAR")
    if jar is None and package is not None and package.submodule_search_locations:
        folder = Path(package.submodule_search_locations[0])
        jar = str(folder / "tokenizer" / "stanford-corenlp-3.4.1.jar")
    if jar is None or shutil.which("java") is None:
        pytest.skip("needs java, and pycocoevalcap installed or PTB_TOKENIZER_JAR set")
    file = tmp_path / "captions.txt"
    file.write_bytes("\n".join(text.replace("\n", " ") for text in texts).encode())
    command = ["java", "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer"]
    run = subprocess.run(
        [*command, "-preserveLines", "-lowerCase", str(file)], capture_output=True, check=True
    )
    lines = run.stdout.decode().split("\n")[: len(texts)]
    return [
        " ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION)
        for line in lines
    ]


def shared_texts(data: Path) -> Iterator[str]:
    """Every caption and running text of the shared data."""

    def strings(value: object) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                yield from strings(part)

    def lines(pattern: str, *keys: str) -> Iterator[str]:
        for file in sorted(data.glob(pattern)):
            for line in file.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                yield from strings([record[key] for key in keys])

    scores = data / "caption_scores"
    references = json.loads(gzip.decompress((scores / "abstract48S_refs.json.gz").read_bytes()))
    yield from (caption["caption"] for several in references.values() for caption in several)
    candidates = json.loads((scores / "abstract_candsB.json").read_text())
    yield from (candidate["caption"] for candidate in candidates)
    for case in json.loads((scores / "published_small.json").read_text()).values():
        yield from strings([case["refs"], case["hyp"]])
    yield from lines("chair/captions_*.jsonl", "caption")
    yield from lines("coco_cc/*.jsonl", "captions")
    for line in (data / "african_storybook" / "stories.jsonl").read_text().splitlines():
        story = json.loads(line)
        yield story["title"]
        yield from (page["text"] for page in story["pages"])
    yield from lines("valse/*.jsonl", "caption", "foil")
    yield from lines("llava_coco80/*.jsonl", "captions")
    yield from lines("nlvr/*.jsonl", "sentence")
    yield from lines("pope/*.jsonl", "text")
    yield from lines("noto_emoji/*.jsonl", "name", "group", "subgroup", "keywords", "aliases")
    problems = json.loads((data / "scienceqa" / "problems_subset.json").read_text())
    for problem in problems.values():
        for key in ("question", "hint", "lecture", "solution", "choices"):
            yield from strings(problem.get(key))


@pytest.mark.slow
def test_cases_are_what_java_says(tmp_path):
    texts = [line for text, _ in CASES for line in (text, "q")]  # a neutral line in between
    assert java_tokens(texts, tmp_path)[::2] == [tokens for _, tokens in CASES]


@pytest.mark.slow
@pytest.mark.shared_data
def test_every_shared_caption_as_java_reads_it(shared_dir, tmp_path):
    texts = list(shared_texts(shared_dir / "data"))
    assert len(texts) > 60_000
    alone = java_tokens([line for text in texts for line in (text, "q")], tmp_path)[::2]
    assert [" ".join(ptb_tokenize(text)) for text in texts] == alone

    in_one_file = java_tokens(texts, tmp_path)
    following = [*(text.lstrip() for text in texts[1:]), ""]
    ours = [" ".join(ptb_tokenize(*pair)) for pair in zip(texts, following, strict=True)]
    assert ours == in_one_file
