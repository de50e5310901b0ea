"""Is our SIMA equal to the published code? One line per golden tensor.

The golden folder holds, for a batch of made-up pairs, what the published trainer collates, expands,
scores and differentiates; what its parser makes of critics' words; and what its CHAIR script counts
in captions. Ours is computed by what trains, parses and counts: rows by the package's collator,
scores and losses by :mod:`polyptych.training.dpo`. Texts are compared byte by byte.

CHAIR needs the public synonym list, which is not part of the golden data: ``synonyms.txt`` in the
folder, or in ``../../data/chair`` seen from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from polyptych.data.collation import Collator
from polyptych.data.tokenization import EncodedExample
from polyptych.evaluation.scoring.chair import (
    CaptionChair,
    ObjectFinder,
    chair,
    overall,
    read_synonyms,
)
from polyptych.methods.sima.released import parse_verdict, parsed_verdict, preference_records
from polyptych.parity import INPUT, ParityReport, Values, as_bytes, compare, dump, no_case
from polyptych.schema import IGNORE_INDEX
from polyptych.training.dpo import DPOLoss, LossKind, Variant, answer_log_probs, dpo_loss

SIDES = ("chosen", "rejected")
VARIANTS: tuple[Variant, ...] = ("plain", "released")
KINDS: tuple[LossKind, ...] = ("sigmoid", "hinge")

PROMPT = 6
"""Tokens before the answer in every golden row."""

_IMAGE = -200

_NO_SYNONYMS = "no synonyms.txt in the folder or in ../../data/chair"


def run(
    directory: str | Path, case: str, dump_to: str | Path | None = None, tolerance: float = 1e-4
) -> ParityReport:
    """Compare our code with the golden data of one case.

    Args:
        directory: The golden folder of SIMA.
        case: ``a`` (easy) or ``b`` (truncated rows, a row without labels, odd verdicts and words).
        dump_to: Where to write our values under the golden names (safetensors).
        tolerance: Largest absolute difference that passes; ids, masks and texts have to be equal.

    Raises:
        PolyptychError: If the folder or case does not exist or is incomplete.
    """
    golden = read_golden(Path(directory), case)
    theirs = golden.values()
    ours = {**rows(golden), **scores(golden), **gradients(golden), **verdicts(golden)}
    not_compared = {f"dpo.{m}_{side}_logits": INPUT for m in ("policy", "ref") for side in SIDES}
    if golden.synonyms is None:
        not_compared |= {name: _NO_SYNONYMS for name in theirs if name.startswith("chair.")}
    else:
        ours |= captions(golden, golden.synonyms)
    if dump_to is not None:
        dump(ours, dump_to)
    # The mean over no token is undefined.
    where = {name: ~value.isnan() for name, value in theirs.items() if name.endswith("_average")}
    return compare(theirs, ours, tolerance=tolerance, not_compared=not_compared, where=where)


@dataclass(frozen=True, slots=True)
class Golden:
    """A case: what the published code was given and what it computed."""

    tensors: Values
    numbers: dict[str, Any]
    critic: list[dict[str, Any]]
    chair_input: dict[str, Any]
    chair_output: dict[str, Any]
    synonyms: Path | None

    def values(self) -> Values:
        """Everything in it, as tensors."""
        found = {f"dpo.{name}": value for name, value in self.tensors.items()}
        for name, values in self.numbers["logps"].items():
            known = [float("nan") if value is None else value for value in values]
            found[f"dpo.{name}"] = torch.tensor(known)
        for variant, numbers in self.numbers["dpo"].items():
            for name, value in numbers.items():
                found[f"dpo.{variant}.{name}"] = torch.tensor(value)
        for name in ("parsed", "verdict", "records"):
            found[f"critic.{name}"] = _lines(line[name] for line in self.critic)
        output = self.chair_output
        for name in ("caption_file", "printed"):
            found[f"chair.{name}"] = _lines([output[name]])
        for name in output["sentences"][0]:
            found[f"chair.{name}"] = _lines(sentence[name] for sentence in output["sentences"])
        for name, value in output["overall_metrics"].items():
            found[f"chair.overall.{name}"] = torch.tensor(value, dtype=torch.float64)
        return found

    @property
    def sequences(self) -> dict[str, list[list[int]]]:
        """Token ids of each side's rows, without padding."""
        return {
            side: [
                ids[mask.bool()].tolist()
                for ids, mask in zip(
                    self.tensors[f"{side}_input_ids"],
                    self.tensors[f"{side}_attention_mask"],
                    strict=True,
                )
            ]
            for side in SIDES
        }


def read_golden(directory: Path, case: str) -> Golden:
    """Load a case.

    Raises:
        PolyptychError: If there is no such case, or a file of it is missing.
    """
    try:
        tensors = load_file(directory / f"dpo_{case}.safetensors")
        numbers, critic, given, made = (
            json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
            for name in (
                f"dpo_{case}",
                f"critic_{case}",
                f"chair_{case}_input",
                f"chair_{case}_output",
            )
        )
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise no_case(directory, case, "SIMA", error) from error
    places = (directory, directory / ".." / ".." / "data" / "chair")
    lists = (place / "synonyms.txt" for place in places)
    return Golden(tensors, numbers, critic, given, made, next(filter(Path.exists, lists), None))


def _lines(values: Sequence[Any] | Iterator[Any]) -> Tensor:
    return as_bytes([json.dumps(value, sort_keys=True) for value in values])


# --- rows ----------------------------------------------------------------------------------------


def rows(golden: Golden) -> Values:
    """Collated, stacked and expanded rows: ids, labels, masks."""
    sequences = golden.sequences
    found: Values = {}
    batches: dict[str, list[list[int]]] = {
        **sequences,
        "concatenated": sequences["chosen"] + sequences["rejected"],
    }
    for name, ids in batches.items():
        found |= {f"dpo.{name}_{part}": value for part, value in _padded(ids).items()}
    for side in SIDES:
        expanded = _padded([expand(ids, golden.numbers) for ids in sequences[side]])
        for part in ("labels", "attention_mask"):
            found[f"dpo.{side}_expanded_{part}"] = expanded[part]
    return found


def expand(ids: list[int], sizes: dict[str, Any]) -> list[int]:
    """A place for each visual token, and the answer cut at its end to fit."""
    places = sizes["image_patches"]
    wide = [token for one in ids for token in ([one] * places if one == _IMAGE else [one])]
    return wide[: sizes["tokenizer_model_max_length"]]


class _Pads:
    """What the collator needs to know of a processor."""

    pad_token_id = instruction_pad_token_id = 0

    encode: Callable[..., Any]
    pixels: Callable[..., Any]


def _padded(sequences: Sequence[list[int]]) -> dict[str, Tensor]:
    """Training rows as the package's collator makes them."""
    encoded = []
    for ids in sequences:
        places = sum(token == _IMAGE for token in ids)
        start = PROMPT + max(0, places - 1)
        labels = [IGNORE_INDEX] * min(start, len(ids)) + ids[start:]
        encoded.append(EncodedExample(ids, labels, start - 1, [], 1, 0))
    batch = Collator(_Pads(), training=True).pad(encoded)
    return {name: batch[name] for name in ("input_ids", "labels", "attention_mask")}


# --- scores --------------------------------------------------------------------------------------


def answer_scores(
    golden: Golden, model: str, variant: Variant, sides: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the chosen and the rejected answers under golden logits."""
    if sides is None:
        sides = [golden.tensors[f"{model}_{side}_logits"] for side in SIDES]
    logits, targets, answers = [], [], []
    for index, (side, values) in enumerate(zip(SIDES, sides, strict=True)):
        labels = golden.tensors[f"{side}_expanded_labels"][:, 1:]
        row, column = (labels != IGNORE_INDEX).nonzero(as_tuple=True)
        logits.append(values[row, column])  # a position predicts the next one
        targets.append(labels[row, column])
        answers.append(row + index * len(labels))
    pairs = len(golden.tensors["chosen_input_ids"])
    return answer_log_probs(
        torch.cat(logits), torch.cat(targets), torch.cat(answers), pairs, variant
    )


def compared(
    golden: Golden,
    variant: Variant,
    kind: LossKind = "sigmoid",
    reference_free: bool = False,
    sides: Sequence[Tensor] | None = None,
) -> DPOLoss:
    """The loss of the batch."""
    return dpo_loss(
        *answer_scores(golden, "policy", variant, sides),
        *answer_scores(golden, "ref", variant),
        beta=golden.numbers["beta"],
        kind=kind,
        reference_free=reference_free,
    )


def scores(golden: Golden) -> Values:
    """Log-probabilities, losses and rewards."""
    found: Values = {}
    counts = {
        side: (golden.tensors[f"{side}_expanded_labels"][:, 1:] != IGNORE_INDEX).sum(dim=1)
        for side in SIDES
    }
    for model in ("policy", "ref"):
        for variant in VARIANTS:
            chosen, rejected = answer_scores(golden, model, variant)
            found[f"dpo.{model}_chosen_logps"] = chosen
            found[f"dpo.{model}_rejected_logps_{variant}"] = rejected
            if variant == "plain":
                average = f"dpo.{model}_{{}}_average"
                found[average.format("chosen_logps")] = chosen / counts["chosen"]
                found[average.format("rejected_logps_plain")] = rejected / counts["rejected"]
    for variant in VARIANTS:
        for kind in KINDS:
            for free in (False, True):
                loss = compared(golden, variant, kind, free)
                name = f"dpo.{variant}/{kind}{'/reference_free' if free else ''}"
                found |= {
                    f"{name}.losses": loss.losses,
                    f"{name}.loss_mean": loss.losses.mean(),
                    f"{name}.chosen_rewards": loss.chosen_rewards,
                    f"{name}.rejected_rewards": loss.rejected_rewards,
                    f"{name}.accuracy": loss.accuracy,
                    f"{name}.margin": loss.margin,
                }
    return found


def gradients(golden: Golden) -> Values:
    """Of the mean sigmoid loss, with respect to the policy's logits."""
    found: Values = {}
    for variant in VARIANTS:
        sides = [golden.tensors[f"policy_{s}_logits"].clone().requires_grad_() for s in SIDES]
        compared(golden, variant, sides=sides).losses.mean().backward()
        for side, logits in zip(SIDES, sides, strict=True):
            assert logits.grad is not None
            found[f"dpo.grad_policy_{side}_logits_{variant}"] = logits.grad
    return found


# --- words ---------------------------------------------------------------------------------------


def verdicts(golden: Golden) -> Values:
    """What the published parser reads, decides and records."""
    lines = [line["input"] for line in golden.critic]
    return {
        "critic.parsed": _lines(parsed_verdict(line["rank_result"]) for line in lines),
        "critic.verdict": _lines(parse_verdict(line["rank_result"]) for line in lines),
        "critic.records": _lines(preference_records(line) for line in lines),
    }


def captions(golden: Golden, synonyms: Path) -> Values:
    """The published CHAIR, from answers to what it prints."""
    finder = ObjectFinder(read_synonyms(synonyms), "released")
    file = caption_file(golden.chair_input["answers"])
    judged = []
    for entry in file["imgToEval"].values():
        truth = _truth(golden.chair_input, finder, entry["image_id"])
        judged.append((entry, chair(finder, entry["caption"], truth)))
    sentences = [_sentence(entry, found) for entry, found in judged]
    whole = overall([found for _, found in judged])
    rates = {"CHAIRs": whole["chair_s"], "CHAIRi": whole["chair_i"]}
    return {
        "chair.caption_file": _lines([file]),
        "chair.printed": _lines([f"{100 * rates['CHAIRs']:.1f}\t{100 * rates['CHAIRi']:.1f}"]),
        **{f"chair.{n}": _lines(sentence[n] for sentence in sentences) for n in sentences[0]},
        **{
            f"chair.overall.{name}": torch.tensor(value, dtype=torch.float64)
            for name, value in rates.items()
        },
    }


def caption_file(answers: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Answers in the form of COCO's caption tools; empty ones are left out."""
    kept = [answer for answer in answers if answer["answer"]]
    return {
        "overall": {"metric1": 0.75},  # a filler that nobody reads
        "imgToEval": {
            str(number): {"image_id": int(answer["id"][-10:-4]), "caption": answer["answer"]}
            for number, answer in enumerate(kept)
        },
    }


def _truth(given: dict[str, Any], finder: ObjectFinder, image: int) -> frozenset[str]:
    """Objects of an image by its annotations and human captions."""
    names = {row["id"]: row["name"] for row in given["categories"]}
    parts = ("train", "val")
    objects = [row for part in parts for row in given["instances"][part]]
    written = [row for part in parts for row in given["captions"][part]]
    return finder.truth(
        [names[row["category_id"]] for row in objects if row["image_id"] == image],
        [row["caption"] for row in written if row["image_id"] == image],
    )


def _sentence(entry: dict[str, Any], found: CaptionChair) -> dict[str, Any]:
    """One caption's counts under the published names."""
    return {
        "image_id": entry["image_id"],
        "caption": entry["caption"],
        "mscoco_hallucinated_words": [[m.word, m.name] for m in found.hallucinated],
        "mscoco_gt_words": sorted(found.truth),
        "mscoco_generated_words": [m.name for m in found.mentions],
        "hallucination_idxs": [m.index for m in found.hallucinated],
        "words": list(found.words),
        "metrics": {"CHAIRs": found.chair_s, "CHAIRi": found.chair_i},
        "objects": [m.word for m in found.mentions],
        "object_idxs": [m.index for m in found.mentions],
    }
