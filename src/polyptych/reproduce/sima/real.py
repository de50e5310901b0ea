"""The SIMA comparison on real data: COCO images told as lists of objects, and a few photos.

A base learns to caption from such lists, wrong objects among the captions on purpose, and to judge
captions; see :mod:`polyptych.reproduce.sima.real_sets`. Two questions:

*The critic*: which of VALSE's captions and foils is true? It is told nothing (what words alone
give away), the list in the question, the list as ground truth, both, or another image's list; with
and without the metrics, by likelihood and in words, in both orders and in one.

*The loop*: the base improves itself on half of VALSE's images and six photos; the other half asks
whether the true caption has become the likelier one. It is told the list, in the question and as
ground truth.

``base``    before
``sima``    the loop: likelihood verdicts in both orders
``random``  verdicts by chance
``foils``   no loop: captions preferred to their foils, what perfect pairs would give
``sft``     no loop: the captions learned by heart

All have equally many steps; learning rates are those chosen on Storybook. The likelihoods' controls
are questions without a list and with another image's. Descriptions are measured by CHAIR and CIDEr,
also on 20 photos, where pictures of others, none, or no list are the controls. Too few photos exist
to learn to see: the eyes are the drawn world's.

Command: ``polyptych reproduce sima --real DATA_DIR --out DIR``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from polyptych.data.preferences import write_pairs
from polyptych.data.records import read_records, write_records
from polyptych.evaluation.scorers import Scorer, caption_scorer, item_scorer
from polyptych.evaluation.scoring.chair import read_synonyms
from polyptych.methods.sima.critic import self_critic
from polyptych.methods.sima.improvement import CriticSettings
from polyptych.methods.sima.records import Prompt, Responses, Verdict, read_verdicts
from polyptych.methods.sima.truth import agreement
from polyptych.models.checkpoint import load_model
from polyptych.models.merging import merge_adapter
from polyptych.models.processor import PolyptychProcessor
from polyptych.reproduce.controls import no_pictures, shuffled_pictures
from polyptych.reproduce.sam.variants import build_base
from polyptych.reproduce.sima.real_sets import (
    CocoSets,
    is_caption,
    listing,
    lists_of_others,
    no_objects,
    objects_in,
    other_objects,
    told,
)
from polyptych.reproduce.sima.sets import corpus_chair, with_mistakes
from polyptych.reproduce.sima.study import VERDICT_TOKENS, SimaSettings, SimaWorkshop
from polyptych.reproduce.small_models import build_processor
from polyptych.reproduce.workshop import Change, GroupBy, Run
from polyptych.schema import Example, PreferencePair
from polyptych.training.preference import tune

VARIANTS = ("base", "sima", "random", "foils", "sft")
ALSO = {"sima": ("random", "sft"), "foils": ("sima",)}

REAL_SETTINGS = replace(
    SimaSettings(),
    descriptions=0,  # as many as there are: 7,982
    mistakes=1,
    prompts=0,
    validation=0,
    test=0,
    learning_rates=(1e-3,),
    variants=VARIANTS,
    more_rounds=(),
)

WORDS = 2048
"""Tokens of the base's tokenizer."""

SHOWN: dict[str, tuple[bool, bool]] = {
    "nothing": (False, False),
    "question": (True, False),
    "ground_truth": (False, True),
    "both": (True, True),
    "other_image": (True, True),
}
"""Where a critic is told what is in the picture; ``other_image`` tells it of another one."""

JUDGES = ("likelihood", "words")


@dataclass(frozen=True)
class CocoWorkshop(SimaWorkshop):
    """The study over COCO's lists and photos.

    Args:
        source: Folder with the folders of the sets.
    """

    source: Path = Path()
    variants: ClassVar[tuple[str, ...]] = VARIANTS
    also: ClassVar[Mapping[str, tuple[str, ...]]] = ALSO
    ranked: ClassVar[tuple[str, ...]] = ("foils",)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Captions against foils, descriptions of the same images, descriptions of photos."""
        return ("foils", "lists", "photos")

    @property
    def base_sets(self) -> Mapping[str, float | None]:
        """What a base learns from, every example equally often: of photos there are few."""
        return dict.fromkeys(("noisy-train", "photos-train", "comparisons-train"))

    @cached_property
    def sets(self) -> CocoSets:
        """Where the examples come from."""
        return CocoSets(self.source, self.settings.data_seed)

    @cached_property
    def data(self) -> dict[str, Path]:
        """Native records, beside which the photos stay where they are."""
        settings, sets = self.settings, self.sets
        makers: dict[str, Callable[[], Iterable[Example]]] = {
            "noisy-train": lambda: with_mistakes(
                sets.captions(settings.descriptions), settings.noise, settings.mistakes, sets.spoil
            ),
            "photos-train": sets.photo_captions,
            "comparisons-train": lambda: sets.comparisons(settings.comparisons),
            "foils-train": lambda: sets.pairs("train")[: settings.prompts or None],
            "description-train": lambda: sets.described(
                read_records(self.data_path("foils-train"))
            ),
            "foils-test": lambda: sets.pairs("test")[: settings.test or None],
            "lists-test": lambda: once_each_image(read_records(self.data_path("foils-test"))),
            "photos-test": lambda: list(sets.photos("test"))[: settings.test or None],
        }
        for name, make in makers.items():
            if not self.data_path(name).exists():
                write_records(self.data_path(name), make())
        return {name: self.data_path(name) for name in makers}

    def data_path(self, name: str) -> Path:
        """File of a set."""
        return self.root / "data" / name / "records.jsonl"

    def fresh(self, seed: int) -> tuple[PreTrainedModel, PolyptychProcessor]:
        """Words of its own, of which nothing is known yet, behind the drawn world's eyes."""
        seeing, theirs = load_model(self.settings.start)
        files = [self.data[name] for name in self.base_sets]
        tokens = theirs.tokens_per_image
        processor = build_processor(self.encoder, files, tokens, vocab_size=WORDS)
        model = build_base(self.encoder, processor, tokens=tokens, width=None, seed=seed)
        connector: Any = seeing.connector
        model.connector.load_state_dict(connector.state_dict())
        return model, processor

    def prompts(self) -> list[Prompt]:
        """Lists to caption; the critic is told the list as the ground truth."""
        examples = read_records(self.data["description-train"])
        return [
            Prompt(replace(example, messages=example.prompt), listing(objects_in(example)))
            for example in examples
        ]

    def build(self, run: Run) -> tuple[PreTrainedModel, PolyptychProcessor]:
        """As in the drawn world; or tuned on captions and foils themselves."""
        if run.variant != "foils":
            return super().build(run)
        folder = self.loop(run)
        pairs, merged = folder / "pairs.jsonl", folder / "model"
        if not pairs.exists():
            write_pairs(pairs, map(preference, read_records(self.data["foils-train"])))
        adapter = tune(pairs, str(self.base(run.seed)), folder / "tuned", self.tuning(run))
        if not merged.exists():
            merge_adapter(adapter, merged)
        return load_model(str(merged))

    @property
    def scorers(self) -> Mapping[str, tuple[Scorer, ...]]:
        """Truth of the likelier text; CHAIR and CIDEr of descriptions."""
        chair = corpus_chair(read_synonyms(self.source / "chair" / "synonyms.txt"))
        described = (chair, caption_scorer("cider"))
        return {
            "foils": (
                item_scorer("accuracy[likelihood]", lambda text, truth: text == truth["caption"]),
            ),
            "lists": described,
            "photos": described,
        }

    @property
    def headline(self) -> Mapping[str, tuple[str, ...]]:
        """The metrics of the tables, by task."""
        chair = tuple(f"{name}[fixed]" for name in ("chair_i", "chair_s", "recall", "coverage"))
        described = (*chair, "cider[coco]")
        return {"foils": ("accuracy[likelihood]",), "lists": described, "photos": described}

    def groups(self, task: str) -> dict[str, GroupBy]:
        """Pairs by whether the list alone decides them."""
        if task == "foils":
            return {"by_decided": lambda e: "by the list" if e.metadata["decides"] else "not"}
        return {}

    def controls(self, task: str) -> Mapping[str, Change]:
        """Questions without what is in the picture; a model that reads it must do worse."""
        lists: dict[str, Change] = {"other_objects": other_objects, "no_objects": no_objects}
        if task == "photos":
            return {"shuffled_pictures": shuffled_pictures, "no_pictures": no_pictures, **lists}
        return lists

    def measure(
        self, run: Run, model: PreTrainedModel, processor: PolyptychProcessor
    ) -> dict[str, Any]:
        """Of a base, its agreement with VALSE in every form; of a loop, what its critic made."""
        if run.variant == "base":
            return {"critics": self.critics(run.seed, model, processor)}
        if run.variant == "foils":
            return {}
        found = super().measure(run, model, processor)
        for counts, folder in zip(found.get("critic", ()), self.iterations(run), strict=False):
            verdicts = read_verdicts(folder / "verdicts.jsonl")
            counts["critic_agrees_with_truth"] = agreement(verdicts, self.sets.truths)
        return found

    def critics(
        self, seed: int, model: PreTrainedModel, processor: PolyptychProcessor
    ) -> list[dict[str, Any]]:
        """How often the base prefers the caption to the foil, in every form of the critic."""
        found = []
        for shown, (_, truth) in SHOWN.items():
            contests = list(contests_of(read_records(self.data["foils-test"]), shown))
            for metrics in (True, False):
                for judge in JUDGES:
                    critic = CriticSettings(
                        judge,
                        prompt="brief",
                        metrics=metrics,
                        ground_truth=truth,
                        max_new_tokens=VERDICT_TOKENS,
                    )
                    name = f"{shown}-{'' if metrics else 'no_'}metrics-{judge}-seed{seed}.jsonl"
                    verdicts = self_critic(
                        critic.make(model, processor),
                        contests,
                        self.root / "critics" / name,
                        progress=False,
                    )
                    for orders, part in (("both", verdicts), ("one", first_order(verdicts))):
                        form = {"shown": shown, "metrics": metrics, "judge": judge}
                        agreed = agreement(part, is_caption) or {}
                        found.append({**form, "orders": orders, **agreed})
        return found


def once_each_image(pairs: Iterable[Example]) -> list[Example]:
    """Questions about lists; pairs of one image are one question with several references."""
    found: dict[Any, Example] = {}
    for pair in pairs:
        first = found.setdefault(pair.metadata["image"], replace(pair, choices=(), references=()))
        references = (*first.references, *pair.references)
        found[pair.metadata["image"]] = replace(first, references=references)
    return list(found.values())


def preference(pair: Example) -> PreferencePair:
    """The caption preferred to the foil."""
    truth = pair.metadata
    return PreferencePair(pair.id, pair.messages, truth["caption"], truth["foil"])


def contests_of(pairs: Iterable[Example], shown: str) -> list[Responses]:
    """Captions and foils as two answers to the same question.

    Args:
        pairs: Their choices stand in an order by chance, so no place is the better one.
        shown: One of :data:`SHOWN`.
    """
    examples, (in_question, _) = list(pairs), SHOWN[shown]
    other = shown == "other_image"
    lists = lists_of_others(examples) if other else [objects_in(e) for e in examples]
    return [
        Responses(
            Prompt(told(example, objects if in_question else ()), listing(objects)),
            example.choices,
            seed=0,
        )
        for example, objects in zip(examples, lists, strict=True)
    ]


def first_order(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """What a critic that asks once, as published, would have said."""
    return [
        replace(
            verdict,
            comparisons=tuple(replace(c, orders=c.orders[:1]) for c in verdict.comparisons),
        )
        for verdict in verdicts
    ]
