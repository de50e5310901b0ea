"""The SAM comparison on real pictures: photos, drawings, and pages of picture books.

Group captioning over TrashNet (which material do the photos share, and which one is the odd one
out) and Noto emoji (the narrowest kind that fits all), and next-page storytelling over African
Storybook, where two controls tell whether pictures are used at all: the same questions with
pictures of other stories, and with none.

Same variants, same budgets, same code as :mod:`polyptych.reproduce.sam.main`; learning rates are
those chosen there. The encoder starts from Storybook's and learns the labels of the training
pictures.

Command: ``polyptych reproduce sam --real DATA_DIR --out DIR``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from polyptych.data.readers import read_examples
from polyptych.data.records import write_records
from polyptych.evaluation.scorers import Measurement, Scorer, caption_scorer, mean_of
from polyptych.methods.sam.model import PolyptychSamForConditionalGeneration
from polyptych.reproduce.controls import no_pictures, shuffled_pictures
from polyptych.reproduce.encoder_finetuning import learn_labels
from polyptych.reproduce.sam.study import Budget, SamWorkshop, StudySettings, run_study
from polyptych.reproduce.small_models import ENCODER
from polyptych.reproduce.workshop import Change, GroupBy
from polyptych.schema import Example, ImageBlock, ImageRef, Message, Prediction, TextBlock
from polyptych.storybook.vocabulary import Split
from polyptych.vision.feature_cache import FeatureCache

SETS = ("trashnet", "noto_emoji", "african_storybook")

LONGEST_PAGE = 24
"""Words of a page that is learned or asked for; half of them. Longer ones exceed 40 tokens."""

REAL_SETTINGS = StudySettings(
    train=3000,
    singles=0,  # as many as there are
    validation=100,
    test=300,
    base_steps=1000,
    steps=400,
    seeds=(0, 1, 2, 3, 4),
    budget=Budget(4),
    sweep=(),
    learning_rates=(1e-3,),
)


def main(
    source: Path,
    out: Path,
    *,
    rates: Mapping[str, float] | None,
    workers: int = 2,
    quick: bool = False,
) -> Path:
    """Run whatever is not done yet; returns the results file ``out/sam_real.json``.

    Args:
        source: Folder with the folders of :data:`SETS`.
        out: Working folder.
        rates: Learning rate of each variant, as chosen on Storybook's validation sets; without
            them 1e-3 for all.
        workers: Runs at the same time, one thread each.
        quick: One seed.
    """
    settings = REAL_SETTINGS.quick() if quick else REAL_SETTINGS
    encoder = out / "encoder"
    if not (encoder / "accuracy.json").exists():
        train_real_encoder(source, encoder)
    shop = RealWorkshop(out, settings, encoder, source)
    return run_study(shop, out / "sam_real.json", workers, rates or None)


def train_real_encoder(source: Path, out: Path, *, steps: int = 500) -> dict[str, float]:
    """Go on from the Storybook encoder with the labels of the training pictures."""
    train, validation = (
        {
            kind: [(ImageRef(path=path), label) for path, label in pictures.items()]
            for kind, pictures in labels(source, split).items()
        }
        for split in ("train", "validation")
    )
    answers = {kind: sorted({label for _, label in each}) for kind, each in train.items()}
    return learn_labels(ENCODER, out, answers, train, validation, pool=cell_mean, steps=steps)


def cell_mean(features: Float[Tensor, "n P D_v"]) -> Float[Tensor, "n D_v"]:
    """What a picture is stands in all of its cells."""
    return features.mean(dim=1)


def exact_match(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[Measurement]:
    """Share of answers that equal a reference, but for case, blanks and the final period."""

    def plain(text: str) -> str:
        return " ".join(text.lower().rstrip(" .").split())

    values = [
        plain(prediction.text) in {plain(reference) for reference in example.references}
        for example, prediction in zip(examples, predictions, strict=True)
    ]
    return [mean_of("accuracy[exact]", [e.id for e in examples], values)]


CAPTIONS = caption_scorer("cider", "rouge_l", "bleu")


@dataclass(frozen=True)
class RealWorkshop(SamWorkshop):
    """The study over real pictures.

    Args:
        source: Folder with the three sets.
    """

    source: Path = Path()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The three sets, learned together."""
        return SETS

    @property
    def align_set(self) -> str:
        """Single pictures with their label or text."""
        return "single-train"

    @property
    def training_sets(self) -> tuple[str, ...]:
        """The tasks."""
        return tuple(f"{task}-train" for task in self.tasks)

    def teach_to_see(
        self, model: PolyptychSamForConditionalGeneration, features: FeatureCache
    ) -> None:
        """Nothing: real pictures come without the truth of everything in them."""

    @property
    def base_trainable(self) -> tuple[str, ...]:
        """Seeing and speaking are learned together."""
        return ("connector", "language_model")

    @property
    def scorers(self) -> Mapping[str, tuple[Scorer, ...]]:
        """Accuracy where there is a right answer, captions everywhere."""
        grouped = (CAPTIONS, exact_match)
        return {"trashnet": grouped, "noto_emoji": grouped, "african_storybook": (CAPTIONS,)}

    @cached_property
    def data(self) -> dict[str, Path]:
        """Native records beside which the pictures stay where they are."""
        settings, folder = self.settings, self.root / "data"
        names = [f"{t}-{s}" for t in SETS for s in ("train", "validation", "test")]
        paths = {name: folder / f"{name}.jsonl" for name in [*names, self.align_set]}
        counts = {"train": settings.train, "validation": settings.validation, "test": settings.test}
        for name in names:
            if paths[name].exists():
                continue
            task, split = name.split("-")
            limit: dict[str, Any] = {} if task == "african_storybook" else {"count": counts[split]}
            examples = read_examples(self.source / task, split=split, **limit)
            write_records(paths[name], list(filter(is_short, examples))[: counts[split]])
        if not paths[self.align_set].exists():
            write_records(paths[self.align_set], single_pictures(self.source))
        return paths

    def groups(self, task: str) -> dict[str, GroupBy]:
        """By number of pictures."""
        return {"by_pictures": lambda example: len(example.images)}

    @property
    def headline(self) -> Mapping[str, tuple[str, ...]]:
        """The metrics of the tables, by task."""
        captions = ("cider[coco]", "rouge_l[coco]", "bleu_4[coco]")
        grouped = (*captions, "accuracy[exact]")
        return {"trashnet": grouped, "noto_emoji": grouped, "african_storybook": captions}

    def controls(self, task: str) -> Mapping[str, Change]:
        """Questions without the right pictures; a model that reads them must do worse."""
        return {"shuffled_pictures": shuffled_pictures, "no_pictures": no_pictures}


def is_short(example: Example) -> bool:
    """Whether its answers have at most :data:`LONGEST_PAGE` words."""
    return all(len(reference.split()) <= LONGEST_PAGE for reference in example.references)


def labels(source: Path, split: Split) -> dict[str, dict[str, str]]:
    """What single pictures are: set -> picture path -> label, from the groups they are in."""
    found: dict[str, dict[str, str]] = {"material": {}, "emoji": {}}
    for example in read_examples(source / "trashnet", split=split, count=3000):
        truth = example.metadata
        for place, image in enumerate(example.images, start=1):
            odd = truth["odd"] == place
            found["material"][str(image.path)] = truth["odd_material" if odd else "shared"]
    names = {}
    for line in (source / "noto_emoji" / "emoji.jsonl").read_text().splitlines():
        item = json.loads(line)
        names[Path(item["file"]).name] = item["subgroup"].replace("-", " ")
    for example in read_examples(source / "noto_emoji", split=split, count=3000):
        for image in example.images:
            found["emoji"][str(image.path)] = names[Path(str(image.path)).name]
    return found


def single_pictures(source: Path) -> list[Example]:
    """Stage ``align``: one picture, one short text; training pictures only."""
    examples: list[Example] = []
    texts = {"material": "a photo of {}.", "emoji": "a drawing of {}."}
    for kind, pictures in labels(source, "train").items():
        for path, label in sorted(pictures.items()):
            examples.append(_single(f"{kind}-{len(examples)}", path, texts[kind].format(label)))
    for example in filter(is_short, read_examples(source / "african_storybook", split="train")):
        page = str(example.images[-1].path)
        examples.append(_single(f"page-{len(examples)}", page, example.target or ""))
    return examples


def _single(identity: str, path: str, text: str) -> Example:
    question = (ImageBlock(), TextBlock(" Describe the picture."))
    answer = Message("assistant", (TextBlock(text),))
    return Example(
        identity, (Message("user", question), answer), (ImageRef(path=path),), references=(text,)
    )
