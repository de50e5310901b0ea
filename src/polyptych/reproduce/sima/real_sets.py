"""Real sets of the SIMA study: COCO images as lists of their objects, and a few photos.

Of most images there are no pixels here, only what is in them, so the question tells it: "There
are: bowl, broccoli. Describe the picture." Captions to learn from are first sentences of published
models' captions; VALSE pairs a human caption with a foil, in which one object has been exchanged.

Needed folders: ``chair`` (synonyms, objects of images, models' captions), ``valse``, ``coco_cc``.
"""

from __future__ import annotations

import gzip
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from polyptych.data.readers.splitting import SplitName, split_keys
from polyptych.data.records import parse_json, read_lines
from polyptych.errors import PolyptychError
from polyptych.evaluation.scoring.chair import Mention, ObjectFinder, read_synonyms
from polyptych.evaluation.scoring.nouns import singular_of
from polyptych.methods.sima.practice import practice_case, with_articles
from polyptych.methods.sima.records import Responses
from polyptych.reproduce.sima.sets import FORMS
from polyptych.schema import Example, ImageBlock, ImageRef, Message, TextBlock

LONGEST = 24
"""Words of a caption; longer ones do not fit into a comparison."""

TOLD = 0.75
"""Share of the captions that are learned with the list; without any, lists are left out of the
question as a control, and a model that has never met that would be tested on something new."""

MISTAKES = 2
"""Most objects that are exchanged in one answer of a comparison."""

_HALVES: Mapping[SplitName, float] = {"train": 0.5, "validation": 0.0, "test": 0.5}
_VALIDATED = 2
"""Of three annotators, those that must have found the caption the true one of a test pair."""


def listing(objects: Sequence[str]) -> str:
    """Objects as a sentence: ``("bowl", "cup") -> "bowl, cup."``."""
    return f"{', '.join(objects)}."


def asked(objects: Sequence[str], *, pictured: bool = False) -> Message:
    """The question, with what is in the picture where objects are given."""
    given = f"There are: {listing(objects)} " if objects else ""
    text = f"{given}Describe the picture."
    if pictured:
        return Message("user", (ImageBlock(), TextBlock(f" {text}")))
    return Message("user", (TextBlock(text),))


def told(example: Example, objects: Sequence[str]) -> Example:
    """The example with other objects in its question, or none."""
    rest = example.messages[1:]
    question = asked(objects, pictured=bool(example.images))
    return replace(example, messages=(question, *rest))


def no_objects(examples: Sequence[Example]) -> list[Example]:
    """Questions that do not tell what is in the picture."""
    return [told(example, ()) for example in examples]


def other_objects(examples: Sequence[Example]) -> list[Example]:
    """Questions that tell what is in another example's picture."""
    return list(map(told, examples, lists_of_others(examples)))


def lists_of_others(examples: Sequence[Example]) -> list[Sequence[str]]:
    """For every example the objects of another one, each of them once."""
    order = list(range(len(examples)))
    random.Random("other objects").shuffle(order)
    source = dict(zip(order, order[1:] + order[:1], strict=True))
    return [objects_in(examples[source[place]]) for place in range(len(examples))]


def objects_in(example: Example) -> Sequence[str]:
    """The annotated objects of the example's image."""
    return example.metadata["objects"]


def plain(text: str) -> str:
    """One line in small letters that ends with a period: the sets write in different ways."""
    return " ".join(text.lower().split()).rstrip(" .") + "."


@dataclass(frozen=True)
class CocoSets:
    """The sets as examples.

    Args:
        source: Folder with their folders.
        seed: Decides the split, and what is drawn.
    """

    source: Path
    seed: int

    @cached_property
    def finder(self) -> ObjectFinder:
        """Finds COCO's 80 objects in captions."""
        return ObjectFinder(read_synonyms(self.source / "chair" / "synonyms.txt"), "fixed")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the 80 objects."""
        return read_synonyms(self.source / "chair" / "synonyms.txt").names

    @cached_property
    def objects(self) -> dict[int, tuple[str, ...]]:
        """Image -> its objects.

        Raises:
            PolyptychError: If the file cannot be read.
        """
        path = self.source / "chair" / "coco2014_objects.jsonl.gz"
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                rows = [parse_json(line, f"{path} line {n}") for n, line in enumerate(file, 1)]
        except OSError as error:
            raise PolyptychError(f"cannot read {path}: {error.strerror or error}") from error
        return {row["image_id"]: tuple(sorted(row["objects"])) for row in rows}

    @cached_property
    def _photo_rows(self) -> dict[SplitName, list[dict[str, Any]]]:
        folder = self.source / "coco_cc"
        return {"train": _rows(folder / "train.jsonl"), "test": _rows(folder / "val.jsonl")}

    @cached_property
    def _pair_rows(self) -> list[dict[str, Any]]:
        """VALSE's pairs whose image has a list; photos are another test."""
        photos = {row["image_id"] for rows in self._photo_rows.values() for row in rows}
        rows = _rows(self.source / "valse" / "foil-it.jsonl")
        known = (row for row in rows if self.objects.get(row["coco_image_id"]))
        return [row for row in known if row["coco_image_id"] not in photos]

    # What is asked about VALSE's images.

    def pairs(self, split: SplitName) -> list[Example]:
        """A caption and its foil as choices, in an order by chance; test pairs are validated ones.

        No image is in both halves. In the metadata are ``image``, ``objects``, ``caption``,
        ``foil``, and whether the list alone ``decides``: it has the object of the one and not that
        of the other.
        """
        images = {str(row["coco_image_id"]) for row in self._pair_rows}
        half = split_keys(images, _HALVES, self.seed)
        return [
            self._pair(row)
            for row in self._pair_rows
            if half[str(row["coco_image_id"])] == split
            and (split == "train" or row["mturk"]["caption"] >= _VALIDATED)
        ]

    def _pair(self, row: Mapping[str, Any]) -> Example:
        objects = self.objects[row["coco_image_id"]]
        caption, foil = plain(row["caption"]), plain(row["foil"])
        choices = [caption, foil]
        random.Random(f"order/{row['id']}").shuffle(choices)
        true, false = (
            {mention.name for mention in self.finder.find(row[key])[1]}
            for key in ("word", "foil_word")
        )
        decides = bool(true) and true <= set(objects) and bool(false) and not false & set(objects)
        return Example(
            id=f"valse-{row['id']}",
            messages=(asked(objects),),
            references=(caption,),
            choices=tuple(choices),
            metadata={
                "image": row["coco_image_id"],
                "objects": objects,
                "caption": caption,
                "foil": foil,
                "decides": decides,
            },
        )

    def photos(self, split: SplitName) -> Iterator[Example]:
        """Photos with the list in the question; their five captions are references."""
        for row in self._photo_rows[split]:
            objects = self.objects[row["image_id"]]
            path = self.source / "coco_cc" / row["image"]
            yield Example(
                id=f"photo-{row['image_id']}",
                messages=(asked(objects, pictured=True),),
                images=(ImageRef(path=str(path)),),
                references=tuple(plain(caption) for caption in row["captions"]),
                metadata={"objects": objects, "license": row["license"], "url": row["flickr_url"]},
            )

    # What a base learns from: images of neither VALSE nor the photos.

    @cached_property
    def _said(self) -> dict[int, list[str]]:
        """Image -> what published models said first of it, where that names a true object."""
        held = {row["coco_image_id"] for row in self._pair_rows}
        held |= {row["image_id"] for rows in self._photo_rows.values() for row in rows}
        said: dict[int, list[str]] = defaultdict(list)
        files = sorted((self.source / "chair").glob("captions_*.jsonl"))
        for row in (row for path in files for row in _rows(path)):
            text = re.split(r"(?<=[.!?])\s", row["caption"].strip())[0]
            usable = 3 <= len(text.split()) <= LONGEST and text.isascii() and "#" not in text
            if usable and row["image_id"] not in held and self.objects.get(row["image_id"]):
                sentence = plain(text)
                true = set(self.objects[row["image_id"]])
                named = {mention.name for mention in self._places(sentence).values()}
                if sentence not in said[row["image_id"]] and named & true:
                    said[row["image_id"]].append(sentence)
        if not any(said.values()):
            raise PolyptychError(f"{self.source / 'chair'}: no captions_*.jsonl with captions")
        return {image: texts for image, texts in said.items() if texts}

    def captions(self, count: int) -> list[Example]:
        """Lists with captions; ``count`` of them by chance, 0: all."""
        found = [
            Example(
                id=f"caption-{image}-{number}",
                messages=(asked(self.objects[image]), _answer(text)),
                references=(text,),
                metadata={"objects": self.objects[image]},
            )
            for image, texts in self._said.items()
            for number, text in enumerate(texts)
        ]
        random.Random(self.seed).shuffle(found)
        return list(map(_sometimes_told, found[: count or None]))

    def photo_captions(self) -> list[Example]:
        """Every caption of every second training photo."""
        return [
            _sometimes_told(
                replace(
                    photo,
                    id=f"{photo.id}-{number}",
                    messages=(*photo.messages, _answer(text)),
                    references=(text,),
                )
            )
            for photo in list(self.photos("train"))[::2]
            for number, text in enumerate(photo.references)
        ]

    def described(self, pairs: Iterable[Example]) -> list[Example]:
        """Pairs' questions with their captions as answers, and the photos left for it."""
        photos = list(self.photos("train"))[1::2]
        return [
            replace(
                example, messages=(*example.messages, _answer(example.references[0])), choices=()
            )
            for example in (*pairs, *photos)
        ]

    def comparisons(self, count: int) -> Iterator[Example]:
        """Practice for the judge: two captions of an image, one of them truer.

        An equal part in each of the critic's forms, with the list in the question and without.
        """
        images = sorted(self._said)
        for number in range(count):
            rng = random.Random(f"comparison/{self.seed}/{number}")
            image = rng.choice(images)
            objects = self.objects[image]
            repeat, place = divmod(number, len(FORMS))
            question = Example(f"comparison-{number:06d}", (asked(objects if repeat % 2 else ()),))
            better, worse = self._unequally_true(rng, image)
            yield practice_case(rng, FORMS[place], question, listing(objects), better, worse)

    def _unequally_true(self, rng: random.Random, image: int) -> tuple[str, str]:
        """Two captions of an image, the truer one first."""
        while True:  # ends, as every caption of the image names a true object
            texts = [
                self.exchange(rng, rng.choice(self._said[image]), self.objects[image], count)
                for count in rng.sample(range(MISTAKES + 1), 2)
            ]
            values = [self.truth(text, self.objects[image]) for text in texts]
            if values[0] != values[1]:
                return (texts[0], texts[1]) if values[0] > values[1] else (texts[1], texts[0])

    def exchange(self, rng: random.Random, text: str, objects: Sequence[str], mistakes: int) -> str:
        """A caption with some of its objects exchanged for others that the image does not have.

        ``"two men hold a cup.", 1 -> "two kites hold a cup."``
        """
        places = self._places(text)
        mentioned = {mention.name for mention in self.finder.find(text)[1]}
        absent = sorted(set(self.names) - set(objects) - mentioned)
        chosen = rng.sample(sorted(places), min(mistakes, len(places)))
        for words, other in zip(chosen, rng.sample(absent, len(chosen)), strict=True):
            name = other if words == places[words].word else self._plural(other)
            text = re.sub(rf"\b{re.escape(words)}\b", name, text)
        return with_articles(text)

    def _places(self, text: str) -> dict[str, Mention]:
        """The words of a caption that name an object -> what they are read as."""
        words, singular = re.findall(r"[\w'-]+", text), singular_of("fixed")
        found = {}
        for mention in self.finder.find(text)[1]:
            length = len(mention.word.split())
            for start in range(len(words) - length + 1):
                part = words[start : start + length]
                if " ".join(map(singular, part)) == mention.word:
                    found[" ".join(part)] = mention
        return found

    def _plural(self, name: str) -> str:
        """Of an object's name, where it has one that is read as the object."""
        plural = f"{name}{'es' if name.endswith(('s', 'x', 'ch', 'sh')) else 's'}"
        return plural if any(m.name == name for m in self.finder.find(plural)[1]) else name

    def spoil(self, rng: random.Random, example: Example, mistakes: int) -> str:
        """An example's caption with objects exchanged."""
        assert example.target is not None
        return self.exchange(rng, example.target, objects_in(example), mistakes)

    def truth(self, text: str, objects: Sequence[str]) -> float:
        """F1 of the objects that a caption mentions against those of the image."""
        said = {mention.name for mention in self.finder.find(text)[1]}
        common = len(said & set(objects))
        return 2 * common / (len(said) + len(set(objects)))

    def truths(self, responses: Responses) -> list[float]:
        """How true each answer about an image is."""
        objects = objects_in(responses.prompt.example)
        return [self.truth(answer, objects) for answer in responses.answers]


def is_caption(responses: Responses) -> list[float]:
    """Of a caption and its foil: 1 for the caption."""
    caption = responses.prompt.example.metadata["caption"]
    return [float(answer == caption) for answer in responses.answers]


def _sometimes_told(example: Example) -> Example:
    """In :data:`TOLD` of all cases as it is, else without the list."""
    known = random.Random(f"told/{example.id}").random() < TOLD
    return example if known else told(example, ())


def _answer(text: str) -> Message:
    return Message("assistant", (TextBlock(text),))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [parse_json(line, where) for where, line in read_lines(path)]
