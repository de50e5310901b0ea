"""What a run learns from and looks at: sets in their shares, in an order drawn beforehand."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from transformers import BatchFeature, PreTrainedModel

from polyptych.data.collation import Collator
from polyptych.data.dataset import (
    ExampleDataset,
    Examples,
    LoadedExample,
    Selection,
)
from polyptych.data.images import image_hash
from polyptych.data.mixture import Mixture, mixture
from polyptych.data.shards import ShardedExamples, is_sharded
from polyptych.errors import PolyptychError
from polyptych.language.state_cache import StateCache
from polyptych.schema import Batch, Example, ImageRef
from polyptych.training.recipe import DataSource, Recipe
from polyptych.training.shots import RandomShots
from polyptych.vision.feature_cache import FeatureCache, encoder_fingerprint

_FINGERPRINTED = 1000
"""Examples per set that its fingerprint is made from, evenly spread."""


Check = Callable[[Examples, int], Any]
"""Raises `PolyptychError` for a record that is no good."""


def _find_images(examples: Examples, index: int) -> None:
    for ref in examples.example(index).images:
        image_hash(ref)


_READABLE: dict[str, Check] = {
    "cannot be read": lambda examples, index: examples.example(index),
    "cannot be learned from": lambda examples, index: examples[index],
    "miss an image file": _find_images,
}
"""What is checked without a model, in this order."""


class TrainingData:
    """The data of one recipe.

    Args:
        recipe: Names the sets, or stands for those given here.
        train: Learned from in place of the recipe's training sets.
        validation: Looked at in place of the recipe's validation sets.

    Raises:
        PolyptychError: If there is nothing to learn from, or a set cannot be read.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: Sequence[Example] | None = None,
        validation: Sequence[Example] | None = None,
    ) -> None:
        self.recipe = recipe
        transform = _trainable_single if recipe.stage == "align" else _trainable
        sources = recipe.data.train
        self.sets: list[Examples]
        self._weights: list[float | None] = [None]
        self.dropped: Counter[str] = Counter()
        self.problems: list[str] = []
        if train is not None:
            self.sets = [_dataset(train, transform)]
        else:
            self.sets = [self._source(source, transform) for source in sources]
            self._weights = [source.weight for source in sources]
        if recipe.data.drop_bad:
            self._keep(_READABLE)
        self._mix()
        if validation is None:
            validation = [
                example
                for source in recipe.data.validation
                for example in _examples(self._source(source, _trainable))
            ]
        self.validation = list(validation)[: recipe.validation.examples]

    @property
    def fingerprints(self) -> dict[str, Any]:
        """What tells the sets from others."""
        return {
            "train": [_fingerprint(examples) for examples in self.sets],
            "validation": _fingerprint(_dataset(self.validation, _trainable)),
        }

    def drop_unfit(self, processor: Any) -> None:
        """Leave out what the model cannot take, where the recipe leaves out bad records."""
        if self.recipe.data.drop_bad:

            def encode(examples: Examples, index: int) -> None:
                processor.encode(examples.example(index), with_target=True)

            self._keep({"do not fit the model": encode})
            self._mix()

    def _source(
        self, source: DataSource, transform: Callable[[LoadedExample], Example]
    ) -> Examples:
        settings = self.recipe.data
        examples: Examples
        if is_sharded(source.path):
            examples = ShardedExamples(
                source.path,
                transform,
                load_images=False,
                cache=settings.shard_cache,
                cache_bytes=settings.shard_cache_bytes,
            )
        else:
            examples = _dataset(source.path, transform)
        if source.limit is None or source.limit >= len(examples):
            return examples
        return Selection(examples, range(source.limit))

    def _keep(self, checks: Mapping[str, Check]) -> None:
        """Keep the records that pass all checks; a check's name is the reason for the others."""
        for place, examples in enumerate(self.sets):
            kept = []
            for index in range(len(examples)):
                problem = _first_problem(checks, examples, index)
                if problem is None:
                    kept.append(index)
                else:
                    self.dropped[problem[0]] += 1
                    self.problems.append(problem[1])
            if len(kept) < len(examples):
                self.sets[place] = Selection(examples, kept)

    def _mix(self) -> None:
        """Draw the order of the whole run."""
        recipe = self.recipe
        self.train_size = sum(map(len, self.sets))
        if not self.train_size:
            left_out = f" ({sum(self.dropped.values())} are left out)" if self.dropped else ""
            raise PolyptychError(f"recipe {recipe.name}: 0 examples to learn from{left_out}")
        self.train: Mixture | RandomShots = mixture(
            self.sets,
            _shares(self._weights, [len(examples) for examples in self.sets]),
            seed=recipe.seed,
            length=recipe.steps * recipe.global_batch_size,
            block=recipe.global_batch_size if recipe.data.exact_shares else None,
            together=recipe.micro_batch_size or 1,
        )
        if recipe.data.random_shots is not None:
            self.train = RandomShots(self.train, recipe.data.random_shots, recipe.seed)

    def texts(self) -> Iterator[str]:
        """All words of the training sets, for a tokenizer of one's own."""
        for examples in self.sets:
            for index in range(len(examples)):
                yield from (message.text for message in examples.example(index).messages)

    def features(self, model: PreTrainedModel, processor: Any) -> FeatureCache | None:
        """The recipe's feature cache with every image of the run in it; None where it has none.

        Raises:
            PolyptychError: If the vision encoder is trained, so that its features change.
        """
        if self.recipe.data.feature_cache is None:
            return None
        encoder = model.get_submodule("vision_encoder")
        learning = sum(parameter.requires_grad for parameter in encoder.parameters())
        if learning:
            raise PolyptychError(
                f"data.feature_cache is for a frozen vision encoder; {learning} of its parameters "
                "are trained"
            )
        cache = FeatureCache(
            self.recipe.data.feature_cache,
            encoder_fingerprint(encoder, processor.image_processor),
        )

        def encode(pixels: torch.Tensor) -> torch.Tensor:
            return encoder.eval()(pixels.to(model.device))

        cache.fill(self._images(processor.context_tokens > 0), encode, processor.pixels)
        return cache

    def states(
        self, model: PreTrainedModel, processor: Any, features: FeatureCache | None
    ) -> StateCache | None:
        """The recipe's cache of states with every row of the run in it; None where it has none.

        Raises:
            PolyptychError: If the model acts at no decoder layer, or something below it is trained.
        """
        if self.recipe.data.state_cache is None:
            return None
        acting: Any = model  # what the seam asks of a method's model has no type of its own
        if not hasattr(acting, "lower_states"):
            raise PolyptychError(
                f"data.state_cache is for methods that act at a decoder layer, "
                f"not for a {model.config.model_type}"
            )
        cache = StateCache(
            self.recipe.data.state_cache, acting.lower_fingerprint(processor.image_processor)
        )
        collate = Collator(processor, training=True, features=features)

        def states(batch: Batch) -> torch.Tensor:
            return acting.lower_states(**BatchFeature(dict(batch)).to(model.device))

        model.eval()
        examples = (each for examples in self.sets for each in _examples(examples))
        cache.fill(examples, states, collate, lambda e: processor.encode(e, with_target=True))
        return cache

    def _images(self, of_shots: bool) -> Iterator[ImageRef]:
        for example in chain(*map(_examples, self.sets), self.validation):
            yield from example.images
            for shot in example.shots if of_shots else ():
                yield from shot.images


def _dataset(
    source: Sequence[Example] | str, transform: Callable[[LoadedExample], Example]
) -> ExampleDataset:
    """Examples without pixels: the collator decodes them, in the worker process."""
    return ExampleDataset(source, transform, load_images=False)


def _first_problem(
    checks: Mapping[str, Check], examples: Examples, index: int
) -> tuple[str, str] | None:
    """The name of the first check that a record fails, and what it says."""
    for reason, check in checks.items():
        try:
            check(examples, index)
        except PolyptychError as error:
            return reason, str(error)
    return None


def _examples(examples: Examples) -> Iterator[Example]:
    return (examples[index] for index in range(len(examples)))


def _trainable(loaded: LoadedExample) -> Example:
    if not loaded.example.target:
        raise PolyptychError(f"example {loaded.example.id}: no answer to learn from")
    return loaded.example


def _trainable_single(loaded: LoadedExample) -> Example:
    images = len(loaded.example.images)
    if images > 1:
        raise PolyptychError(
            f"example {loaded.example.id}: {images} images, but stage align takes at most 1"
        )
    return _trainable(loaded)


def _shares(weights: Sequence[float | None], sizes: Sequence[int]) -> list[float]:
    given = [weight for weight in weights if weight is not None]
    if not given:
        return [float(size) for size in sizes]
    if len(given) < len(weights):
        raise PolyptychError(
            f"recipe: data.train: {len(given)} of {len(weights)} sources have a weight; "
            "give all of them one or none"
        )
    return given


def _fingerprint(examples: Examples) -> dict[str, Any]:
    if isinstance(examples, ShardedExamples):
        return {"examples": len(examples), "hash": examples.fingerprint}
    digest = hashlib.sha256()
    for index in range(0, len(examples), max(1, len(examples) // _FINGERPRINTED)):
        example = examples.example(index)
        digest.update(f"{example.id}\0{example.target}\0".encode())
    return {"examples": len(examples), "hash": digest.hexdigest()[:12]}
