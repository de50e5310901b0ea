"""The CaMML comparison on real data: photos to label by labelled photos, science questions.

Same variants, steps and code as :mod:`polyptych.reproduce.camml.main`. Photos (TrashNet,
Fashion-MNIST): of some labels there is no training question, and a few labelled photos stand in the
datastore; every second time, a training question lives in a world where the labels have changed
places, so that what shots say has to be read. ScienceQA: text questions, answered by letter; the
datastore is the training questions with their answers, found by their words, the question's own
left out.

Command: ``polyptych reproduce camml --real DATA_DIR --out DIR``, with the folders of
:data:`~polyptych.reproduce.camml.real_sets.SETS` in ``DATA_DIR``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from polyptych.data.readers.splitting import SPLITS
from polyptych.data.records import read_records, write_records
from polyptych.evaluation.scorers import Scorer, item_scorer
from polyptych.models.processor import PolyptychProcessor
from polyptych.reproduce.camml.base import close_up_encoder
from polyptych.reproduce.camml.knowledge import (
    FACTS_FILE,
    NEIGHBORS_FILE,
    QUESTIONS_FILE,
    Datastore,
    World,
    with_shots,
)
from polyptych.reproduce.camml.real_sets import (
    LABELS,
    PHOTO_SETS,
    SETS,
    base_questions,
    read_set,
    set_correct,
)
from polyptych.reproduce.camml.stages import run_study
from polyptych.reproduce.camml.study import CammlSettings, CammlWorkshop, read_datastore
from polyptych.reproduce.camml.word_encoder import WordEncoder
from polyptych.reproduce.encoder_finetuning import Labelled, learn_labels
from polyptych.reproduce.small_models import ENCODER
from polyptych.reproduce.workshop import GroupBy, Run
from polyptych.retrieval.building import build_index
from polyptych.retrieval.encoders import load_encoder
from polyptych.retrieval.inputs import key_text
from polyptych.retrieval.neighbors import NeighborSettings, build_neighbors
from polyptych.retrieval.protocol import Encoder
from polyptych.retrieval.retriever import Retriever
from polyptych.retrieval.store import INDEX_FILE
from polyptych.schema import Example

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
        torch.set_num_threads(1)
        train, validation = (
            {name: _labelled(shop.sets[name] / split) for name in PHOTO_SETS}
            for split in ("train", "validation")
        )
        answers = {name: LABELS[name] for name in PHOTO_SETS}
        learn_labels(
            start,
            shop.encoder,
            answers,
            train,
            validation,
            pool=most_of_a_cell,
            steps=encoder_steps,
        )
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


def most_of_a_cell(features: Float[Tensor, "n P D_v"]) -> Float[Tensor, "n D_v"]:
    """Photos are close: what is in them may show in a single cell."""
    return features.amax(dim=1)


def _labelled(folder: Path) -> Labelled:
    """The photos of a split's questions."""
    return [(q.images[0], q.metadata["answer"]) for q in read_records(folder / QUESTIONS_FILE)]
