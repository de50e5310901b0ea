"""The CaMML comparison on real data: photos to label by labelled photos, science questions.

Same variants, steps and code as :mod:`polyptych.reproduce.camml`. Photos (TrashNet, Fashion-MNIST):
of some labels there is no training question, and a few labelled photos stand in the datastore;
every second time, a training question lives in a world where the labels have changed places, so
that what shots say has to be read. ScienceQA: text questions, answered by letter; the datastore is
the training questions with their answers, found by their words, the question's own left out.

Command: ``polyptych reproduce camml --real DATA_DIR --out DIR``, with the folders of
:data:`~polyptych.reproduce.camml_sets.SETS` in ``DATA_DIR``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, ResNetConfig, ResNetModel
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from polyptych.data.images import load_image
from polyptych.data.readers.splitting import SPLITS
from polyptych.data.records import read_records, write_records
from polyptych.evaluation.scorers import Scorer, item_scorer
from polyptych.models.processor import PolyptychProcessor
from polyptych.reproduce.camml_base import close_up_encoder
from polyptych.reproduce.camml_sets import (
    LABELS,
    PHOTO_SETS,
    SETS,
    base_questions,
    read_set,
    set_correct,
)
from polyptych.reproduce.camml_stages import run_study
from polyptych.reproduce.camml_study import CammlSettings, CammlWorkshop, read_datastore
from polyptych.reproduce.knowledge import (
    FACTS_FILE,
    NEIGHBORS_FILE,
    QUESTIONS_FILE,
    Datastore,
    World,
    with_shots,
)
from polyptych.reproduce.real_pictures import augmented
from polyptych.reproduce.small_models import ENCODER
from polyptych.reproduce.word_encoder import WordEncoder
from polyptych.reproduce.workshop import GroupBy, Run
from polyptych.retrieval.building import build_index
from polyptych.retrieval.encoders import load_encoder
from polyptych.retrieval.inputs import key_text
from polyptych.retrieval.neighbors import NeighborSettings, build_neighbors
from polyptych.retrieval.protocol import Encoder
from polyptych.retrieval.retriever import Retriever
from polyptych.retrieval.store import INDEX_FILE
from polyptych.schema import Example
from polyptych.vision.encoder import VisionEncoder

REAL_SETTINGS = replace(
    CammlSettings(),
    questions=1500,  # of each set; ScienceQA has 520 texts
    validation=100,
    test=300,
    base_steps=1500,
    first_steps=600,
    steps=800,
    learning_rates=(1e-3,),
    seeds=(0, 1, 2),
    most_shots=5,
    shots=(1, 3, 5),
    longest_text=512,
    pass_size=2,  # ScienceQA's, a seventh of all, have long texts for shots
    sweep=(),
)


def main(
    out: Path,
    source: Path,
    *,
    quick: bool = False,
    workers: int = 2,
    settings: CammlSettings = REAL_SETTINGS,
    encoder_steps: int = 1000,
) -> Path:
    """Run whatever is not done yet; returns the results file ``out/camml_real.json``.

    Args:
        out: Working folder.
        source: Folder with the folders of the sets.
        quick: One seed.
        workers: Runs at the same time, one thread each.
        settings: Sizes.
        encoder_steps: Of the vision encoder on the labels that are trained on.
    """
    out.mkdir(parents=True, exist_ok=True)
    settings = settings.quick() if quick else settings
    start = close_up_encoder(ENCODER, out / "start")
    shop = RealCammlWorkshop(out, settings, out / "encoder", source)
    if not (shop.encoder / "accuracy.json").exists():
        train_photo_encoder(shop, start, steps=encoder_steps)
    return run_study(shop, out / "camml_real.json", workers)


@dataclass(frozen=True)
class RealCammlWorkshop(CammlWorkshop):
    """The study over real sets.

    Args:
        source: Folder with their folders.
    """

    source: Path = Path()
    answer_in_training: ClassVar[bool] = False  # the label or skill: most shots have it

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every set with every number of shots."""
        return tuple(f"{name}_{count}" for name in SETS for count in self.settings.shots)

    @cached_property
    def sets(self) -> Mapping[str, Path]:
        """Set -> folder with a folder per split; written where it is not there yet."""
        settings, folders = self.settings, {}
        names = ("questions", "validation", "test")
        counts = {s: getattr(settings, name) for s, name in zip(SPLITS, names, strict=True)}
        for name in SETS:
            folders[name] = self.root / "data" / name
            if (folders[name] / "test" / QUESTIONS_FILE).exists():
                continue
            parts = read_set(name, self.source, counts, settings.data_seed)
            for split, (facts, questions) in parts.items():
                write_records(folders[name] / split / FACTS_FILE, facts)
                write_records(folders[name] / split / QUESTIONS_FILE, questions)
        return folders

    @cached_property
    def data(self) -> dict[str, Path]:
        """Sets that are trained on; the base learns the questions without shots."""
        for folder in self.sets.values():
            for split in SPLITS:
                self._find_neighbors(folder / split)
        return {
            "base-train": self._written("base-train", lambda: self._base_questions("train")),
            "base-validation": self._written(
                "base-validation", lambda: self._base_questions("validation")
            ),
            **self._training_sets(),
        }

    def _base_questions(self, split: str) -> Iterator[Example]:
        asked = {n: read_datastore(f / split).questions for n, f in self.sets.items()}
        return base_questions(asked)

    def _find_neighbors(self, folder: Path) -> None:
        if (folder / NEIGHBORS_FILE).exists():
            return
        facts = list(read_records(folder / FACTS_FILE))
        encoder: Encoder
        key: Any = "image"
        if facts[0].images:
            encoder = load_encoder(self.encoder)
        else:
            encoder, key = WordEncoder([key_text(fact) for fact in facts]), "text"
        if not (folder / "index" / INDEX_FILE).exists():
            build_index(facts, folder / "index", encoder, key=key)
        build_neighbors(
            read_records(folder / QUESTIONS_FILE),
            Retriever(folder / "index", encoder),
            folder / NEIGHBORS_FILE,
            settings=NeighborSettings(top_k=self.settings.retrieved, query=key),
        )

    def stores(self) -> list[Datastore]:
        """Of all sets and splits."""
        return [read_datastore(folder / s) for folder in self.sets.values() for s in SPLITS]

    def training_stores(self) -> list[Datastore]:
        """Of all sets."""
        return [read_datastore(folder / "train") for folder in self.sets.values()]

    def world(self, seed: str, number: int) -> World | None:
        """As it is, and every second time with other labels."""
        return World(seed, LABELS) if number % 2 else None

    def asked(self, run: Run, task: str, split: str) -> list[Example]:
        """The questions of a set with a number of shots, as the run's variant gets them."""
        name, count = task.rsplit("_", 1)
        store = read_datastore(self.sets[name] / split)
        return [
            self.presented(
                run.variant,
                with_shots(
                    question,
                    self.shots_of(run.variant, store, question, int(count), question.id),
                    None,
                ),
            )
            for question in store.questions
        ]

    @property
    def scorers(self) -> Mapping[str, tuple[Scorer, ...]]:
        """The label, or the letter; of photos also those of labels that nobody was trained on."""
        every = item_scorer("accuracy[label]", set_correct)
        new = item_scorer(
            "new_accuracy[label]",
            lambda text, truth: set_correct(text, truth) if truth["new"] else None,
        )
        known = item_scorer(
            "known_accuracy[label]",
            lambda text, truth: None if truth["new"] else set_correct(text, truth),
        )
        return {
            task: (every, new, known) if task.startswith(PHOTO_SETS) else (every,)
            for task in self.tasks
        }

    @property
    def headline(self) -> Mapping[str, tuple[str, ...]]:
        """The metrics of the tables, by task."""
        photos = ("new_accuracy[label]", "known_accuracy[label]")
        return {
            task: photos if task.startswith(PHOTO_SETS) else ("accuracy[label]",)
            for task in self.tasks
        }

    def groups(self, task: str) -> dict[str, GroupBy]:
        """Whether a shot has the label, or asks for the same skill."""
        return {"by_found": lambda e: "found" if e.metadata["found"] else "not found"}

    def merit(self, record: Mapping[str, Any]) -> float:
        """Mean accuracy over sets and numbers of shots."""
        tasks = record["tasks"]
        return sum(tasks[task]["accuracy[label]"] for task in self.tasks) / len(self.tasks)

    def measure(
        self, run: Run, model: PreTrainedModel, processor: PolyptychProcessor
    ) -> dict[str, Any]:
        """Nothing more: costs are those of the drawn study."""
        return {}


def train_photo_encoder(
    shop: RealCammlWorkshop, start: Path, *, steps: int, batch_size: int = 64
) -> dict[str, float]:
    """Go on from the Storybook encoder with the labels that are trained on.

    Returns:
        Accuracy on the validation photos, by set; also in ``accuracy.json`` beside the weights.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = VisionEncoder(ResNetConfig.from_pretrained(start))
    encoder.model.load_state_dict(
        ResNetModel.from_pretrained(start, dtype=torch.float32).state_dict()
    )
    processor = BlipImageProcessorPil.from_pretrained(start)
    sets = {name: _labelled(shop.sets[name] / "train", processor) for name in PHOTO_SETS}
    heads = nn.ModuleDict(
        {name: nn.Linear(encoder.hidden_size, len(LABELS[name])) for name in PHOTO_SETS}
    )
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        name = PHOTO_SETS[step % len(PHOTO_SETS)]
        pixels, target = sets[name]
        rows = torch.randint(len(pixels), (batch_size,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            states = encoder(augmented(pixels[rows], generator)).amax(dim=1)
            loss = cross_entropy(heads[name](states).float(), target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    encoder.model.save_pretrained(shop.encoder)
    processor.save_pretrained(shop.encoder)
    result = {}
    for name in PHOTO_SETS:
        pixels, target = _labelled(shop.sets[name] / "validation", processor)
        with torch.inference_mode():
            guess = heads[name](encoder.eval()(pixels).amax(dim=1)).argmax(-1)
        result[name] = float((guess == target).float().mean())
    (shop.encoder / "accuracy.json").write_text(json.dumps(result, indent=1))
    return result


def _labelled(folder: Path, processor: BlipImageProcessorPil) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and label numbers of a split's questions."""
    questions: Sequence[Example] = list(read_records(folder / QUESTIONS_FILE))
    images = [load_image(question.images[0]) for question in questions]
    names = LABELS[cast(str, questions[0].metadata["attribute"])]
    target = torch.tensor([names.index(question.metadata["answer"]) for question in questions])
    return processor(images, return_tensors="pt")["pixel_values"], target
