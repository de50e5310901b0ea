"""The CaMML study: settings, sets, the variants, and what each of them is asked."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from polyptych.data.collation import Collator
from polyptych.data.records import read_records, write_records
from polyptych.evaluation.scorers import Scorer, item_scorer
from polyptych.methods.camml.model import (
    PolyptychCammlConfig,
    PolyptychCammlForConditionalGeneration,
)
from polyptych.methods.camml.shots import ShotCache
from polyptych.models.checkpoint import load_model
from polyptych.models.processor import PolyptychProcessor
from polyptych.reproduce.camml.knowledge import (
    NEIGHBORS_FILE,
    Datastore,
    World,
    base_examples,
    concatenated,
    draw_knowledge,
    knowledge_correct,
    with_shots,
)
from polyptych.reproduce.recipes import sources, study_recipe
from polyptych.reproduce.small_models import WIDTH
from polyptych.reproduce.workshop import GroupBy, Run, Workshop
from polyptych.retrieval.building import build_index
from polyptych.retrieval.encoders import load_encoder
from polyptych.retrieval.neighbors import NeighborSettings, build_neighbors
from polyptych.retrieval.retriever import Retriever
from polyptych.retrieval.store import INDEX_FILE
from polyptych.schema import Example
from polyptych.storybook.vocabulary import Split
from polyptych.training.recipe import DataRecipe, Recipe

VARIANTS = ("none", "random", "concatenated", "camml")

ALSO = {"camml": ("concatenated",)}
"""CaMML is compared with the same shots in the prompt, too."""

_READS_TOKENS = ("random", "camml")
"""Variants with perceivers; the others are the base alone."""

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Context:
    """How much a context may say."""

    queries: int = 16
    """Q: 2Q context tokens."""

    @property
    def name(self) -> str:
        """``q16``."""
        return f"q{self.queries}"


@dataclass(frozen=True, slots=True)
class CammlSettings:
    """Everything that decides the study; saved with its results."""

    questions: int = 3000
    """Training questions."""
    validation: int = 200
    """Validation questions; they choose learning rates."""
    test: int = 400
    """Test questions about persons and things that no training question knows."""
    data_seed: int = 2401
    base_examples: int = 40000
    """What the base learns from: pictures to name, texts to read."""
    worlds: int = 8
    """Times that each training question comes again, in another world."""
    decoder_layers: int = 4
    base_steps: int = 5000
    base_learning_rate: float = 1e-3
    base_batch: int = 32
    first_steps: int = 3000
    """Steps of every variant from the base, on questions with the one fact that answers. In fewer
    (1,000) two of three seeds' perceivers learned nothing; all seeds go on from one such start."""
    steps: int = 2000
    """Steps of every variant from there, on questions with the shots that it gets."""
    grid_steps: int = 400
    """Steps of the shorter runs that choose a learning rate."""
    batch_size: int = 16
    pass_size: int | None = None
    """Examples that a step reads at once; None: all. Where few are long, the others need no padding
    to their length; gradients are the same."""
    learning_rates: tuple[float, ...] = (1e-3,)
    """With several, validation questions choose; the first is that of the first steps."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    most_shots: int = 5
    """A training question has 1 to so many shots, by chance."""
    shots: tuple[int, ...] = (1, 3, 5, 10)
    """Numbers of shots that are tested; the last one is more than in training."""
    longest_text: int = 64
    """Tokens of a shot's text whose places are told apart; those here have some 25."""
    edited_shots: int = 3
    """Shots of the questions to the edited datastore."""
    timed: int = 20
    """Questions that are timed, one by one."""
    context: Context = Context()
    sweep: tuple[Context, ...] = (Context(4), Context(32))
    """Other sizes of the context, with the sweep's seeds."""
    sweep_seeds: tuple[int, ...] = (0,)

    @property
    def retrieved(self) -> int:
        """Neighbors of each question: as many as it can ever get."""
        return max(self.most_shots, *self.shots)

    def quick(self) -> CammlSettings:
        """One seed, no grid, no sweep: a look at everything in a fraction of the time."""
        return replace(self, seeds=self.seeds[:1], learning_rates=(1e-3,), sweep=())


@dataclass(frozen=True)
class CammlWorkshop(Workshop):
    """The CaMML study over Storybook."""

    settings: CammlSettings
    variants: ClassVar[tuple[str, ...]] = VARIANTS
    also: ClassVar[Mapping[str, tuple[str, ...]]] = ALSO
    answer_tokens: ClassVar[int] = 12  # a word or a phrase
    answer_in_training: ClassVar[bool] = True
    """Whether the shots of a training question always have the answer; in tests they do not.

    Where retrieval decided, half of the questions had none, and CaMML unlearned what it had learned
    first: on validation questions with the fact alone 95 % became 35 % in 1,000 steps (seed 0; 84 %
    after 1,500 with the answer among the shots), at three shots 9 % stayed 9 % (34 %).
    """

    @property
    def tasks(self) -> tuple[str, ...]:
        """The same questions with different shots, and to an edited datastore."""
        return (*(f"shots_{count}" for count in self.settings.shots), "oracle", "edited")

    def folder(self, split: Split) -> Path:
        """Facts, questions, index and neighbors of a split."""
        return self.root / "data" / split

    def store(self, split: Split) -> Datastore:
        """The datastore of a split, read once."""
        return read_datastore(self.folder(split))

    def stores(self) -> list[Datastore]:
        """All that have pictures."""
        return [self.store(split) for split in _SPLITS]

    def training_stores(self) -> list[Datastore]:
        """Those whose questions are trained on."""
        return [self.store("train")]

    def world(self, seed: str, number: int) -> World | None:
        """Where a training question lives when it comes for the ``number``-th time."""
        return World(seed)

    @cached_property
    def data(self) -> dict[str, Path]:
        """Sets that are trained on; drawn, indexed and written where they are not there yet."""
        settings, names = self.settings, ("questions", "validation", "test")
        for split, name in zip(_SPLITS, names, strict=True):
            self._draw(split, getattr(settings, name))
        return {
            "base-train": self._written("base-train", lambda: self._base_examples("train")),
            "base-validation": self._written(
                "base-validation", lambda: self._base_examples("validation")
            ),
            **self._training_sets(),
        }

    def _training_sets(self) -> dict[str, Path]:
        """``VARIANT-first`` and ``VARIANT-train``."""
        kinds = {"first": self._first_examples, "train": self._training_examples}
        return {
            f"{variant}-{kind}": self._written(f"{variant}-{kind}", partial(make, variant))
            for variant in self.variants
            for kind, make in kinds.items()
        }

    def _written(self, name: str, make: Callable[[], Iterable[Example]]) -> Path:
        path = self.root / "data" / f"{name}.jsonl"
        if not path.exists():
            write_records(path, make())
        return path

    def _base_examples(self, split: Split) -> list[Example]:
        settings = self.settings
        count = settings.base_examples if split == "train" else 3 * settings.validation
        return base_examples(self.store(split).facts, split, count=count, seed=settings.data_seed)

    def _draw(self, split: Split, count: int) -> None:
        """Facts, questions, the index of the facts, and the neighbors of the questions."""
        folder = self.folder(split)
        if (folder / NEIGHBORS_FILE).exists():
            return
        draw_knowledge(folder, split, count=count, seed=self.settings.data_seed)
        encoder = load_encoder(self.encoder)
        if not (folder / "index" / INDEX_FILE).exists():
            build_index(read_records(folder / "facts.jsonl"), folder / "index", encoder)
        build_neighbors(
            read_records(folder / "questions.jsonl"),
            Retriever(folder / "index", encoder),
            folder / NEIGHBORS_FILE,
            settings=NeighborSettings(top_k=self.settings.retrieved),
        )

    def _first_examples(self, variant: str) -> Iterator[Example]:
        """Every question in several worlds, with the one fact that answers.

        Among up to five shots, perceivers that nobody has trained are not found to be worth
        reading: after 400 steps the loss was still that of the question alone.
        """
        for seed, number, store, question in self._asked_in_training():
            example = with_shots(question, store.asked_for(question), self.world(seed, number))
            yield self.presented(variant, replace(example, id=seed))

    def _training_examples(self, variant: str) -> Iterator[Example]:
        """Every question in several worlds, each time with a number of shots by chance.

        World and number are the same for all variants: only the shots, or their form, differ.
        """
        for seed, number, store, question in self._asked_in_training():
            count = random.Random(f"shots/{seed}").randint(1, self.settings.most_shots)
            shots = self.shots_of(variant, store, question, count, seed)
            if self.answer_in_training and variant != "random":
                shots = store.with_answer(question, shots, seed)
            example = with_shots(question, shots, self.world(seed, number))
            yield self.presented(variant, replace(example, id=seed))

    def _asked_in_training(self) -> Iterator[tuple[str, int, Datastore, Example]]:
        """Id, how often it has come before, datastore and question."""
        asked = [(store, each) for store in self.training_stores() for each in store.questions]
        for number in range(self.settings.worlds):
            for store, question in asked:
                yield f"{question.id}-{number}", number, store, question

    def shots_of(
        self, variant: str, store: Datastore, question: Example, count: int, seed: str
    ) -> list[Example]:
        """The shots of a question, by the variant's way to them."""
        if variant == "random":
            return store.drawn(count, seed)
        return store.retrieved(question, count)

    def presented(self, variant: str, example: Example) -> Example:
        """A question with shots as a variant gets it."""
        if variant == "none":
            return replace(example, shots=())
        return concatenated(example) if variant == "concatenated" else example

    def asked(self, run: Run, task: str, split: str) -> list[Example]:
        """The questions of a split with the shots of a task, as the run's variant gets them."""
        store = self.store(cast(Split, split))
        world = World(f"edited/{split}") if task == "edited" else None
        examples = []
        for question in store.questions:
            if task == "oracle":
                shots = store.asked_for(question)
            else:
                count = (
                    self.settings.edited_shots
                    if task == "edited"
                    else int(task.removeprefix("shots_"))
                )
                shots = self.shots_of(run.variant, store, question, count, question.id)
            example = with_shots(question, shots, world)
            truth = {**example.metadata, "before": question.metadata["answer"]}
            examples.append(self.presented(run.variant, replace(example, metadata=truth)))
        return examples

    @property
    def base(self) -> Path:
        """The base's folder."""
        return self.root / "base" / "final"

    @property
    def scorers(self) -> Mapping[str, tuple[Scorer, ...]]:
        """Right by the datastore; where that was edited, also by what it said before."""
        right = item_scorer("accuracy[knowledge]", knowledge_correct)
        before = item_scorer(
            "outdated_accuracy[knowledge]",
            lambda text, truth: knowledge_correct(text, {**truth, "answer": truth["before"]}),
        )
        return {task: (right, before) if task == "edited" else (right,) for task in self.tasks}

    @property
    def headline(self) -> Mapping[str, tuple[str, ...]]:
        """The metrics of the tables, by task."""
        right, before = "accuracy[knowledge]", "outdated_accuracy[knowledge]"
        return {task: (right, before) if task == "edited" else (right,) for task in self.tasks}

    def groups(self, task: str) -> dict[str, GroupBy]:
        """Whether the shots have the fact, and what is asked for."""
        return {
            "by_found": lambda example: "found" if example.metadata["found"] else "not found",
            "by_attribute": lambda example: example.metadata["attribute"],
        }

    def answered(self, run: Run) -> str | None:
        """A learning rate is chosen by answers, too."""
        return {"first": None, "grid": "validation"}.get(run.purpose, "test")

    def first_run(self, variant: str, context: Context) -> Run:
        """Where a variant starts: CaMML with random shots from CaMML with the right one."""
        rate, steps = self.settings.learning_rates[0], self.settings.first_steps
        form = "camml" if variant in _READS_TOKENS else variant
        return Run(f"{form}-first", 0, rate, steps, context, "first")

    def merit(self, record: Mapping[str, Any]) -> float:
        """Mean accuracy over the numbers of shots, on validation questions."""
        tasks = record["tasks"]
        counts = self.settings.shots
        return sum(tasks[f"shots_{n}"]["accuracy[knowledge]"] for n in counts) / len(counts)

    def build(self, run: Run) -> tuple[PreTrainedModel, PolyptychProcessor]:
        """A first run's model; before that the base, with fresh perceivers where it has them."""
        if run.purpose != "first":
            first = self.first_run(run.variant, run.condition)
            return load_model(self.run_folder(first) / "final")
        base, processor = load_model(self.base)
        if run.variant != "camml-first":
            return base, processor
        settings = self.settings
        model = with_perceivers(base, run, settings)
        processor.context_tokens = model.config.context_tokens
        processor.context_token_id = model.config.context_token_id
        return model, processor

    def recipe(self, run: Run) -> Recipe:
        """Everything but the vision encoder learns, as in the paper."""
        name = run.variant if run.purpose == "first" else f"{run.variant}-train"
        reads = run.variant.removesuffix("-first") in _READS_TOKENS
        return study_recipe(
            run.name,
            ("connector", "language_model", *(("camml",) if reads else ())),
            DataRecipe(train=sources([self.data[name]]), feature_cache=str(self.features)),
            steps=run.steps,
            batch_size=self.settings.batch_size,
            learning_rate=run.learning_rate,
            seed=run.seed,
            save_every=200,
            micro_batch_size=self.settings.pass_size,
        )

    def measure(self, run: Run, model: Any, processor: PolyptychProcessor) -> dict[str, Any]:
        """Tokens that the language model reads, and seconds of an answer, by the number of shots.

        From pictures to the answer's words, one question at a time; retrieval is the same for all.
        ``cached_seconds`` are with the datastore's entries encoded before.
        """
        if run.purpose in ("first", "grid"):
            return {}
        costs = {}
        for count in self.settings.shots:
            asked = self.asked(run, f"shots_{count}", "test")[: self.settings.timed]
            tokens, seconds = answering_costs(model, processor, asked)
            row = {"tokens": tokens, "seconds": seconds}
            if run.variant in _READS_TOKENS:
                row["cached_seconds"] = answering_costs(model, processor, asked, cached=True)[1]
            costs[str(count)] = row
        return {"costs": costs}


def with_perceivers(
    base: PreTrainedModel, run: Run, settings: CammlSettings
) -> PolyptychCammlForConditionalGeneration:
    """CaMML on a trained base, told the order of words and shots; its part starts from the seed.

    Weights start at the size of their width: 0.02, made for a width of 768, would make all shots
    look alike here. Context tokens start as large as words.
    """
    fields = base.config.to_dict()
    fields.pop("model_type")
    torch.manual_seed(run.seed)
    model = PolyptychCammlForConditionalGeneration(
        PolyptychCammlConfig(
            **fields,
            perceiver_config={
                "hidden_size": WIDTH,
                "num_attention_heads": 4,
                "intermediate_size": 2 * WIDTH,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
            num_query_tokens=run.condition.queries,
            text_positions=settings.longest_text,
            shot_positions=settings.retrieved,
        )
    )
    missing, unexpected = model.load_state_dict(base.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("camml.") for name in missing)
    camml, word = model.camml, float(model.get_input_embeddings().weight.detach().std())
    for parameter in camml.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    context = camml.context_perceiver
    for queries_of in (context.vision_queries, context.text_queries):
        nn.init.normal_(queries_of)
    nn.init.normal_(camml.text_projection.weight, std=WIDTH**-0.5 / word)
    for projection in (context.vision_projection, context.text_projection):
        nn.init.normal_(projection.weight, std=word * WIDTH**-0.5)
    for places in (camml.text_positions, camml.shot_positions):
        assert places is not None
        nn.init.normal_(places.weight, std=0.3)
    return model.eval()


def answering_costs(
    model: Any, processor: PolyptychProcessor, asked: Sequence[Example], *, cached: bool = False
) -> tuple[float, float]:
    """Mean tokens of a prompt, and median seconds of a greedy answer."""
    store = ShotCache(model, processor) if cached else None
    collate = Collator(processor, training=False, shots=store)
    lengths, seconds = [], []
    collate(asked)  # reads every file once, and fills the cache
    for example in asked:
        started = time.perf_counter()
        batch = collate([example])
        with torch.inference_mode():
            model.generate(
                **batch,
                max_new_tokens=CammlWorkshop.answer_tokens,
                do_sample=False,
                pad_token_id=processor.pad_token_id,
            )
        seconds.append(time.perf_counter() - started)
        lengths.append(batch["input_ids"].shape[1])
    return sum(lengths) / len(lengths), median(seconds)


@cache
def read_datastore(folder: Path) -> Datastore:
    """A datastore, read once per process."""
    return Datastore(folder)
