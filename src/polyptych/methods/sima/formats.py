"""The released code's files, read and written, and pairs for TRL.

    prompts        JSONL   image, text, ground_truth            (read: records.read_prompts)
    responses      JSONL   image_path, text, ground_truth, greedy_decodes, temperature_decodes_1
    critic prompts JSONL   text (filled), question, image, ground_truth and both answers
    verdicts       JSONL   id (= image), question (= filled prompt), rank_result, both answers
    preferences    JSON    id, image, conversations, rejected_conversations

They know one image and one question per line and no id of their own: ids are made of the content.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from polyptych.data.records import IMAGE_TOKEN, read_json, read_lines
from polyptych.errors import PolyptychError
from polyptych.files import write_aside
from polyptych.methods.sima.prompts import CriticFormat
from polyptych.methods.sima.records import (
    GREEDY,
    Comparison,
    Prompt,
    Responses,
    Verdict,
    parse_object,
    released_prompt,
    with_content_ids,
    write_lines,
)
from polyptych.methods.sima.released import parse_verdict, recover_question
from polyptych.schema import ImageBlock, Message, PreferencePair, TextBlock

SAMPLED = 1
"""Place of the one sampled answer that these files know."""

RELEASED_ORDER = CriticFormat(released_order=True)
"""Images first, line breaks deleted, as in the released critic's prompts."""

_VALUES = {"sampled": 1.0, "greedy": -1.0, None: None}


def write_prompts(path: Path, prompts: Iterable[Prompt], images: Path) -> None:
    """Write the prompts that the released code takes; image names are relative to ``images``."""
    write_lines(path, (_prompt_fields(prompt, images, "image") for prompt in prompts))


def read_responses(path: Path, images: Path) -> list[Responses]:
    """Read the released code's responses.

    Raises:
        PolyptychError: At the first bad line, naming file and line.
    """
    return _read_answers(path, images, image="image_path", question="text")


def write_responses(path: Path, responses: Iterable[Responses], images: Path, model: str) -> None:
    """Write responses in the released form: the greedy answer and the first sampled one."""
    write_lines(
        path,
        (
            {
                **_prompt_fields(item.prompt, images, "image_path"),
                **_two_answers(item),
                "model_id": model,
            }
            for item in responses
        ),
    )


def read_critic_prompts(path: Path, images: Path) -> list[Responses]:
    """Read the released code's filled critic prompts; their words are passed over."""
    return _read_answers(path, images, image="image", question="question")


def write_critic_prompts(
    path: Path,
    responses: Iterable[Responses],
    images: Path,
    form: CriticFormat = RELEASED_ORDER,
) -> None:
    """Write filled critic prompts for the released code, in our words."""
    write_lines(path, (_critic_fields(item, images, form) for item in responses))


def read_verdicts(path: Path, images: Path) -> list[Verdict]:
    """Read what the released critic said; each verdict is one order, the sampled answer first.

    The question is recovered from the filled prompt as the released code does; the ground truth is
    not in the file.
    """
    verdicts = []
    for where, line in read_lines(path):
        record = parse_object(line, where)
        _require(record, ("id", "question", "rank_result", *_ANSWERS), where)
        asked = {"image": record["id"], "text": recover_question(record["question"])}
        item = _responses(asked, record, where, images)
        said = record["rank_result"]
        found = Comparison(SAMPLED, (_VALUES[parse_verdict(said)],), (said,))
        verdicts.append(Verdict(item, (found,), {}))
    named = with_content_ids([verdict.responses.prompt for verdict in verdicts])
    return [
        replace(verdict, responses=replace(verdict.responses, prompt=prompt))
        for verdict, prompt in zip(verdicts, named, strict=True)
    ]


def write_verdicts(
    path: Path,
    verdicts: Iterable[Verdict],
    images: Path,
    model: str,
    form: CriticFormat = RELEASED_ORDER,
) -> None:
    """Write verdicts over the first sampled answer in the released form.

    ``rank_result`` is what the critic said in its first order; where it did not speak, the verdict
    that its margin stands for. Prompts whose sampled answer was not compared are left out.
    """
    lines = []
    for verdict in verdicts:
        found = next((c for c in verdict.comparisons if c.candidate == SAMPLED), None)
        if found is None:
            continue
        filled = _critic_fields(verdict.responses, images, form)
        lines.append(
            {
                "id": filled["image"],
                "question": filled["text"],
                "rank_result": found.texts[0] if found.texts else _said(found, form),
                **_two_answers(verdict.responses),
                "model_id": model,
            }
        )
    write_lines(path, lines)


def read_preferences(path: Path, images: Path) -> list[PreferencePair]:
    """Read the released code's preference data.

    Raises:
        PolyptychError: For a record of another form, naming file and place.
    """
    records = read_json(path)
    if not isinstance(records, list):
        raise PolyptychError(f"{path}: expected a list of records")
    found = []
    for number, record in enumerate(records, start=1):
        where = f"{path} record {number}"
        try:
            turns = [t["value"] for t in record["conversations"]]
            others = [t["value"] for t in record["rejected_conversations"]]
            asked, chosen, rejected = turns[0], turns[1], others[1]
            prompt = released_prompt({"image": record["image"], "text": asked}, where, images)
        except (KeyError, IndexError, TypeError) as error:
            raise PolyptychError(f"{where}: not a preference of LLaVA's form: {error}") from error
        found.append((prompt, chosen, rejected))
    named = with_content_ids([prompt for prompt, *_ in found])
    return [
        PreferencePair(p.id, p.example.prompt, chosen, rejected, images=p.example.images)
        for p, (_, chosen, rejected) in zip(named, found, strict=True)
    ]


def write_preferences(path: Path, pairs: Sequence[PreferencePair], images: Path) -> None:
    """Write pairs as the released trainer reads them: one image, which moves to the front.

    Raises:
        PolyptychError: For a pair with another number of images or turns than one.
    """
    records = []
    for pair in pairs:
        image = _only_image(pair.id, pair.images, images)
        human = {"from": "human", "value": f"{IMAGE_TOKEN}\n{_only_text(pair.id, pair.prompt)}"}
        records.append(
            {
                "id": image.split(".")[0],
                "image": image,
                "conversations": [human, {"from": "gpt", "value": pair.chosen}],
                "rejected_conversations": [human, {"from": "gpt", "value": pair.rejected}],
            }
        )
    with write_aside(path) as file:
        json.dump(records, file, indent=1, ensure_ascii=False)


def write_trl(path: Path, pairs: Iterable[PreferencePair], images: Path) -> None:
    """Write pairs as conversational rows of TRL's vision trainers, any number of images.

    ``datasets.load_dataset("json", ...)`` reads them; ``images`` are paths relative to the folder,
    to be cast to ``Sequence(Image())``.
    """
    write_lines(
        path,
        (
            {
                "images": [_relative(i.path, images, pair.id) for i in pair.images],
                "prompt": [_turn(message) for message in pair.prompt],
                "chosen": [_turn(Message("assistant", (TextBlock(pair.chosen),)))],
                "rejected": [_turn(Message("assistant", (TextBlock(pair.rejected),)))],
            }
            for pair in pairs
        ),
    )


# Parts of lines

_ANSWERS = ("greedy_decodes", "temperature_decodes_1")


def _read_answers(path: Path, images: Path, *, image: str, question: str) -> list[Responses]:
    items = []
    for where, line in read_lines(path):
        record = parse_object(line, where)
        _require(record, (image, question, *_ANSWERS), where)
        asked = {
            "image": record[image],
            "text": record[question],
            "ground_truth": record.get("ground_truth"),
        }
        items.append(_responses(asked, record, where, images))
    named = with_content_ids([item.prompt for item in items])
    return [replace(item, prompt=prompt) for item, prompt in zip(items, named, strict=True)]


def _responses(
    asked: dict[str, Any], record: dict[str, Any], where: str, images: Path
) -> Responses:
    prompt = released_prompt(asked, where, images)
    return Responses(prompt, (record["greedy_decodes"], record["temperature_decodes_1"]), 0)


def _require(record: dict[str, Any], keys: Sequence[str], where: str) -> None:
    for key in keys:
        if not isinstance(record.get(key), str):
            raise PolyptychError(f"{where}: {key!r} must be a string, got {record.get(key)!r}")


def _prompt_fields(prompt: Prompt, images: Path, image: str) -> dict[str, Any]:
    return {
        image: _only_image(prompt.id, prompt.example.images, images),
        "text": _only_text(prompt.id, prompt.example.prompt),
        "ground_truth": prompt.ground_truth,
    }


def _two_answers(item: Responses) -> dict[str, str]:
    if len(item.answers) <= SAMPLED:
        raise PolyptychError(f"id {item.id!r} has no sampled answer for a released file")
    greedy, sampled = item.answers[GREEDY], item.answers[SAMPLED]
    return {"greedy_decodes": greedy, "temperature_decodes_1": sampled}


def _critic_fields(item: Responses, images: Path, form: CriticFormat) -> dict[str, Any]:
    fields = _prompt_fields(item.prompt, images, "image")
    answers = _two_answers(item)
    filled = form.messages(
        [TextBlock(fields["text"])],
        item.prompt.ground_truth,
        answers["temperature_decodes_1"],
        answers["greedy_decodes"],
    )[0]
    return {
        "text": filled.text.lstrip("\n"),
        "question": fields["text"],
        "image": fields["image"],
        "ground_truth": item.prompt.ground_truth,
        **answers,
    }


def _said(comparison: Comparison, form: CriticFormat) -> str:
    margin = comparison.margin or 0.0
    return f"{form.prompt.closing}{'1' if margin > 0 else '2' if margin < 0 else 'Tie'}]]."


def _only_image(identity: str, refs: Sequence[Any], images: Path) -> str:
    if len(refs) != 1:
        raise PolyptychError(f"id {identity!r} has {len(refs)} images; the released form knows 1")
    return _relative(refs[0].path, images, identity)


def _only_text(identity: str, messages: Sequence[Message]) -> str:
    if len(messages) != 1:
        raise PolyptychError(
            f"id {identity!r} has {len(messages)} turns; the released form knows 1"
        )
    return messages[0].text.strip()


def _relative(path: str | None, images: Path, identity: str) -> str:
    if path is None:
        raise PolyptychError(f"id {identity!r}: an image given as bytes has no name")
    return os.path.relpath(path, images)


def _turn(message: Message) -> dict[str, Any]:
    content = [
        {"type": "image"} if isinstance(block, ImageBlock) else {"type": "text", "text": block.text}
        for block in message.content
    ]
    return {"role": message.role, "content": content}
