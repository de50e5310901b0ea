"""Samples of the benchmarks that ask about one image; each writes into the benchmark's folder."""

from __future__ import annotations

import base64
import random
from pathlib import Path
from typing import Any

from PIL.Image import Image

from polyptych.evaluation.samples.album import (
    Asked,
    ask_color,
    ask_place,
    claim_about,
    claims,
    encoded,
    page,
    persons,
    picture,
    questions,
    scenes,
    shuffled,
)
from polyptych.evaluation.samples.writing import write_image, write_json, write_lines, write_text
from polyptych.evaluation.scoring.vqa_accuracy import HUMANS
from polyptych.evaluation.tasks import aokvqa, gqa, mmbench, mme, pope, scienceqa, vqa
from polyptych.evaluation.tasks.interleaving import lettered
from polyptych.evaluation.tasks.llava_files import LETTER_ANSWER, SHORT_ANSWER
from polyptych.storybook.vocabulary import CATEGORIES, KINDS, NAMES

COUNT = 12
"""Questions of a sample."""

_UNANSWERABLE = (
    "\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT_ANSWER
)


def _coco(split: str, number: int) -> str:
    return f"COCO_{split}_{number + 1:012d}.jpg"


def _humans(*answers: str) -> list[dict[str, Any]]:
    """Ten answers; the first one is most people's."""
    given = [*answers, *[answers[0]] * (HUMANS - len(answers))]
    return [
        {"answer": text, "answer_confidence": "yes", "answer_id": n}
        for n, text in enumerate(given, start=1)
    ]


def sample_vqav2(root: Path) -> None:
    """Test-dev and test, whose answers the server keeps."""
    layout = vqa.SETS["vqav2"]
    rows = [
        {
            "question_id": 1000 * (asked.picture + 1),
            "image": _coco("test2015", asked.picture),
            "text": asked.question + SHORT_ANSWER,
            "category": "default",
        }
        for asked in questions("vqav2", COUNT + 4)
    ]
    write_lines(root / layout.questions, rows[:COUNT])
    write_lines(root / "llava_vqav2_mscoco_test2015.jsonl", rows)
    for number, row in enumerate(rows):
        write_image(root / layout.images / str(row["image"]), picture(number))


def sample_okvqa(root: Path) -> None:
    """Validation with ten answers each, of which some differ."""
    layout = vqa.SETS["okvqa"]
    rows, annotations = [], []
    for asked in questions("okvqa", COUNT):
        identity, image = 10 * (asked.picture + 1), _coco("val2014", asked.picture)
        text = asked.question + SHORT_ANSWER
        rows.append({"question_id": identity, "image": image, "text": text})
        answers = _humans(asked.answer, asked.wrong[0], f"the {asked.answer}", asked.wrong[0])
        annotations.append(
            {"question_id": identity, "image_id": asked.picture + 1, "answers": answers}
        )
        write_image(root / layout.images / image, picture(asked.picture))
    write_lines(root / layout.questions, rows)
    write_json(root / layout.answers[0], {"annotations": annotations})


def sample_vizwiz(root: Path) -> None:
    """The test split, whose answers the server keeps; some pictures do not show what is asked."""
    layout = vqa.SETS["vizwiz"]
    rows = []
    for asked in questions("vizwiz", COUNT):
        image = f"VizWiz_test_{asked.picture:08d}.jpg"
        blurred = asked.picture % 4 == 3
        shown = picture(asked.picture)
        if blurred:
            shown = shown.resize((4, 4)).resize(shown.size)
        rows.append(
            {
                "question_id": asked.picture,
                "image": image,
                "text": asked.question + _UNANSWERABLE,
                "category": "default",
            }
        )
        write_image(root / layout.images / image, shown)
    write_lines(root / layout.questions, rows)


def sample_textvqa(root: Path) -> None:
    """Printed pages with two questions each; an id in the question file names the image."""
    layout = vqa.SETS["textvqa"]
    rows, data = [], []
    for number in range(COUNT // 2):
        rng = random.Random(f"sample/textvqa/{number}")
        title, author = f"The {rng.choice(sorted(KINDS))}", rng.choice(NAMES)
        identity = f"{number:016x}"
        write_image(root / layout.images / f"{identity}.jpg", page(title, f"by {author}"))
        for turn, (question, answer) in enumerate(
            [("Who wrote this?", author), ("What is the title?", title)]
        ):
            words = f"\nReference OCR token: {', '.join([*title.split(), 'by', author])}"
            text = question + words + SHORT_ANSWER
            rows.append({"question_id": identity, "image": f"{identity}.jpg", "text": text})
            data.append(
                {
                    "question_id": 2 * number + turn,
                    "image_id": identity,
                    "question": question,
                    "answers": [answer.lower()] * HUMANS,
                }
            )
    write_lines(root / layout.questions, rows)
    write_json(root / layout.answers[0], {"dataset_type": "val", "data": data})


def sample_gqa(root: Path) -> None:
    """Open and binary questions."""
    rows, truths = [], {}
    asked = [(a.picture, a.question, a.answer, "query") for a in questions("gqa", COUNT // 2)]
    asked += [(c.picture, c.question, c.answer, "verify") for c in claims("gqa", COUNT // 2)]
    for number, (shown, question, answer, structural) in enumerate(asked):
        identity, image = f"{number:08d}", f"n{shown}.jpg"
        rows.append({"question_id": identity, "image": image, "text": question + SHORT_ANSWER})
        types = {"structural": structural, "semantic": "obj", "detailed": "exist"}
        truths[identity] = {
            "imageId": f"n{shown}",
            "question": question,
            "answer": answer,
            "isBalanced": True,
            "types": types,
        }
        write_image(root / "data" / "images" / image, picture(shown))
    write_lines(root / gqa.QUESTIONS, rows)
    write_json(root / "data" / gqa.TRUTHS, truths)


def sample_aokvqa(root: Path) -> None:
    """Four options each."""
    rows, truths = [], []
    for asked in questions("aokvqa", COUNT):
        options, answer = asked.options(random.Random(f"aokvqa/{asked.picture}"))
        identity, image = f"drawn{asked.picture:04d}", f"{asked.picture + 1:012d}.jpg"
        text = asked.question + lettered(options) + LETTER_ANSWER
        rows.append({"question_id": identity, "image": image, "text": text})
        truths.append(
            {
                "split": "val",
                "image_id": asked.picture + 1,
                "question_id": identity,
                "question": asked.question,
                "choices": options,
                "correct_choice_idx": answer,
                "direct_answers": [asked.answer] * HUMANS,
                "difficult_direct_answer": False,
                "rationales": [f"The picture shows it: {asked.answer}."],
            }
        )
        write_image(root / "val2017" / image, picture(asked.picture))
    write_lines(root / aokvqa.QUESTIONS, rows)
    write_json(root / aokvqa.TRUTHS, truths)


def sample_scienceqa(root: Path) -> None:
    """Questions with an image, and questions about words alone, in both forms."""
    problems: dict[str, Any] = {}
    lines: dict[scienceqa.Form, list[dict[str, Any]]] = {form: [] for form in scienceqa.FILES}
    pictured = [(asked, "natural science") for asked in questions("scienceqa", COUNT * 2 // 3)]
    worded = [(_about_words(number), "language science") for number in range(COUNT // 3)]
    for number, (asked, subject) in enumerate([*pictured, *worded], start=1):
        options, answer = asked.options(random.Random(f"scienceqa/{number}"))
        identity, shown = str(number), subject == "natural science"
        problems[identity] = {
            "question": asked.question,
            "choices": options,
            "answer": answer,
            "hint": "",
            "image": "image.png" if shown else None,
            "subject": subject,
            "split": "test",
        }
        text = ("<image>\n" if shown else "") + asked.question + lettered(options)
        for form, rows in lines.items():
            row: dict[str, Any] = {"id": identity}
            if shown:
                row["image"] = f"{identity}/image.png"
            answers = "ABCD"[answer] if form == "scienceqa_img" else f"ANSWER: {'ABCD'[answer]}."
            row["conversations"] = [
                {"from": "human", "value": text},
                {"from": "gpt", "value": answers},
            ]
            rows.append(row)
        if shown:
            write_image(root / "images/test" / identity / "image.png", picture(asked.picture))
    write_json(root / "problems.json", problems)
    for form, rows in lines.items():
        write_json(root / scienceqa.FILES[form], rows)


def _about_words(number: int) -> Asked:
    rng = random.Random(f"words/{number}")
    category = rng.choice(sorted(CATEGORIES))
    inside = sorted(name for name, kind in KINDS.items() if kind.category == category)
    one, two, three = rng.sample(sorted(set(KINDS).difference(inside)), 3)
    question = f"Which of these belongs to the {CATEGORIES[category]}?"
    return Asked(0, "word", question, rng.choice(inside), (one, two, three))


def sample_pope(root: Path) -> None:
    """Three categories of questions about the same pictures."""
    for category in pope.CATEGORIES:
        rows = []
        for number, claim in enumerate(claims(category, COUNT), start=1):
            image = _coco("val2014", claim.picture)
            rows.append(
                {
                    "question_id": number,
                    "image": image,
                    "text": claim.question,
                    "label": claim.answer,
                }
            )
            write_image(root / "val2014" / image, picture(claim.picture))
        write_lines(root / "coco" / f"coco_pope_{category}.json", rows)


def sample_mme(root: Path) -> None:
    """Six of the sub-tasks, two images each, both ways in which the release lays them out."""
    rows = []
    for category in ("existence", "count", "color", "scene", "OCR", "numerical_calculation"):
        folder = root / mme.IMAGES / category
        apart = category == "scene"
        for number in range(2):
            rng = random.Random(f"mme/{category}/{number}")
            shown, affirmed, denied = _mme_pair(category, number, rng)
            name = f"{number + 1:04d}"
            write_image(folder / ("images" if apart else ".") / f"{name}.jpg", shown)
            pair = [(affirmed, "Yes"), (denied, "No")]
            truth = "".join(f"{text} Please answer yes or no.\t{word}\n" for text, word in pair)
            write_text(folder / ("questions_answers_YN" if apart else ".") / f"{name}.txt", truth)
            image = f"{category}/{name}.jpg"
            rows += [
                {
                    "question_id": image,
                    "image": image,
                    "text": text + SHORT_ANSWER,
                    "category": category,
                }
                for text, _ in pair
            ]
    write_lines(root / "llava_mme.jsonl", rows)


def _mme_pair(category: str, number: int, rng: random.Random) -> tuple[Image, str, str]:
    """Picture, the question to affirm, and the one to deny."""
    shown = picture(number)
    if category == "existence":
        affirmed, denied = (claim_about(rng, number, truth).question for truth in (True, False))
        return shown, affirmed, denied
    if category == "count":
        form = "Are there exactly {} persons in the image?"
        right, wrong = str(persons(number)), str(persons(number) + 1)
    elif category == "OCR":
        form = 'Is the word in the image "{}"?'
        right, wrong = rng.sample(sorted(KINDS), 2)
        shown = page(right)
    elif category == "numerical_calculation":
        one, two = rng.randint(2, 9), rng.randint(2, 9)
        form = "Is the answer to the sum in the image {}?"
        right, wrong = str(one + two), str(one + two + 1)
        shown = page(f"{one} + {two} =")
    else:
        asked = (ask_color(rng, number) if category == "color" else None) or ask_place(rng, number)
        form, right, wrong = asked.question.rstrip("?") + ": {}?", asked.answer, asked.wrong[0]
    return shown, form.format(right), form.format(wrong)


def sample_seed(root: Path) -> None:
    """Images and middle frames of videos, three types of questions."""
    types = {"Scene Understanding": 1, "Instance Attributes": 3, "Instance Location": 4}
    number_of = {"place": 1, "color": 3, "thing": 4}
    rows, records = [], []
    for asked in questions("seed", COUNT):
        video = asked.picture % 4 == 3
        options, answer = asked.options(random.Random(f"seed/{asked.picture}"))
        identity = f"v{asked.picture}" if video else str(asked.picture)
        folder = "SEED-Bench-video-image" if video else "SEED-Bench-image"
        image = f"{folder}/{identity}.jpg"
        text = asked.question + lettered(options) + LETTER_ANSWER
        rows.append({"question_id": identity, "image": image, "text": text})
        record: dict[str, Any] = {
            "question_id": identity,
            "question": asked.question,
            "answer": "ABCD"[answer],
            "data_type": "video" if video else "image",
            "question_type_id": number_of[asked.sort],
        }
        record |= {f"choice_{x}": text for x, text in zip("abcd", options, strict=True)}
        records.append(record)
        write_image(root / image, picture(asked.picture))
    write_lines(root / "llava-seed-bench.jsonl", rows)
    write_json(root / "SEED-Bench.json", {"questions": records, "question_type": types})


_CHINESE_PLACES = {
    "beach": "海滩",
    "street": "街道",
    "night": "夜空下",
    "kitchen": "厨房",
    "forest": "森林",
    "desert": "沙漠",
    "snow": "雪地",
    "bedroom": "卧室",
    "meadow": "草地",
    "mountains": "山里",
}
_HEAD = (*("index", "question", "hint", "A", "B", "C", "D", "answer", "category"), "image")


def sample_mmbench(root: Path) -> None:
    """Questions with two to four options, some with a hint."""
    rows = []
    for asked in questions("mmbench", COUNT):
        rng = random.Random(f"mmbench/{asked.picture}")
        options = shuffled(rng, [asked.answer, *asked.wrong[: 1 + asked.picture % 3]])
        hint = "The picture is a drawing." if asked.picture % 3 == 0 else ""
        rows.append(_mmbench_row(asked, asked.question, hint, options))
    _write_mmbench(root / mmbench.FILES["mmbench"], rows)


def sample_mmbench_cn(root: Path) -> None:
    """Where is this, and how many persons are there, in Chinese."""
    rows = []
    for number in range(COUNT):
        rng = random.Random(f"mmbench_cn/{number}")
        place, people = scenes()[number].place, persons(number)
        if number % 2:
            options = [str(count) for count in range(4)]
            asked = Asked(number, "count", "图中有几个人？", str(people), ("", "", ""))
        else:
            words = [_CHINESE_PLACES[place]]
            words += rng.sample([w for w in _CHINESE_PLACES.values() if w not in words], 3)
            options = shuffled(rng, words)
            asked = Asked(number, "place", "这是什么地方？", words[0], ("", "", ""))
        rows.append(_mmbench_row(asked, asked.question, "", options))
    _write_mmbench(root / mmbench.FILES["mmbench_cn"], rows)


def _mmbench_row(asked: Asked, question: str, hint: str, options: list[str]) -> list[str]:
    image = base64.b64encode(encoded(picture(asked.picture), "JPEG")).decode()
    answer = "ABCD"[options.index(asked.answer)]
    options = [*options, "", "", ""][:4]
    return [str(asked.picture), question, hint, *options, answer, asked.sort, image]


def _write_mmbench(path: Path, rows: list[list[str]]) -> None:
    write_text(path, "".join("\t".join(row) + "\n" for row in [list(_HEAD), *rows]))
