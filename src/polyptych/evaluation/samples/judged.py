"""Samples of descriptions and open questions: CHAIR, and the sets whose answers a judge grades."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

from PIL import Image

from polyptych.evaluation.samples.album import SIZE, SPLIT, picture, questions, scenes
from polyptych.evaluation.samples.writing import write_image, write_json, write_lines, write_text
from polyptych.evaluation.tasks import chair, llava_bench, mementos, mm_vet, mmhal
from polyptych.files import write_aside
from polyptych.storybook.graph import Scene, kinds_in
from polyptych.storybook.rendering import draw
from polyptych.storybook.tasks import description, storytelling
from polyptych.storybook.vocabulary import KINDS, PERSON

COUNT = 12
_PERSONS = (PERSON, "man", "woman", "girl", "boy", "child")


def _described(number: int) -> str:
    return description.references_for(scenes()[number])[0]


def sample_chair(root: Path) -> None:
    """Pictures with annotations in COCO's form; the synonym list names what Storybook draws."""
    words = [*((kind,) for kind in KINDS), _PERSONS]
    numbers = {row[0]: place for place, row in enumerate(words, start=1)}
    instances: list[dict[str, Any]] = []
    humans: list[dict[str, Any]] = []
    for number in range(COUNT):
        identity, scene = number + 1, scenes()[number]
        instances += [
            {"id": len(instances) + turn, "image_id": identity, "category_id": numbers[thing.kind]}
            for turn, thing in enumerate(scene.things)
        ]
        humans += [
            {"id": len(humans) + turn, "image_id": identity, "caption": text}
            for turn, text in enumerate(description.references_for(scene))
        ]
        write_image(root / "val2014" / f"COCO_val2014_{identity:012d}.jpg", picture(number))
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    folder = root / chair.ANNOTATIONS
    write_text(root / chair.SYNONYMS, "".join(", ".join(row) + "\n" for row in words))
    write_json(
        folder / "instances_val2014.json", {"categories": categories, "annotations": instances}
    )
    write_json(folder / "captions_val2014.json", {"annotations": humans})


def sample_mm_vet(root: Path) -> None:
    """Questions of one ability, and of two with an answer in two parts."""
    truths: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for number, asked in enumerate(questions("mm_vet", COUNT)):
        key, image = f"v1_{number}", f"v1_{number}.png"
        both = number % 4 == 3
        scene = scenes()[asked.picture]
        record = {
            "imagename": image,
            "question": f"{asked.question} And where is this?" if both else asked.question,
            "answer": f"{asked.answer} <AND> {scene.place}" if both else asked.answer,
            "imagesource": "drawn",
            "capability": ["rec", "spat"] if both else ["rec"],
        }
        truths[key] = record
        row = {"question_id": key, "image": image, "text": record["question"]}
        rows.append({**row, "category": "default"})
        write_image(root / mm_vet.IMAGES / image, picture(asked.picture))
    write_json(root / mm_vet.TRUTHS, truths)
    write_lines(root / mm_vet.QUESTIONS, rows)


def sample_llava_bench(root: Path) -> None:
    """Three questions about each of four pictures, one of each category."""
    rows: list[dict[str, Any]] = []
    contexts: list[dict[str, Any]] = []
    references: list[dict[str, Any]] = []
    for number in range(COUNT // 3):
        image = f"{number + 1:03d}.jpg"
        asked = questions(f"llava_bench/{number}", number + 1)[number]
        told = _described(number)
        contexts.append({"id": str(number), "image": image, "caption": told})
        write_image(root / llava_bench.IMAGES / image, picture(number))
        for category, question, answer in (
            ("conv", asked.question, f"The answer is: {asked.answer}."),
            ("detail", "Describe the picture in detail.", told),
            ("complex", "What might happen here next, and why?", f"We see that {told}"),
        ):
            row = {"question_id": len(rows), "image": image, "text": question}
            rows.append({**row, "category": category})
            references.append({"question_id": row["question_id"], "text": answer})
    write_lines(root / llava_bench.QUESTIONS, rows)
    write_lines(root / llava_bench.CONTEXT, contexts)
    write_lines(root / llava_bench.REFERENCES, references)


def sample_mmhal(root: Path) -> None:
    """Questions of four types, some of them about things that are not there."""
    records = []
    for number, asked in enumerate(questions("mmhal", COUNT)):
        scene, image = scenes()[asked.picture], f"{number + 100}_drawn.jpg"
        kind, question, answer = "attribute", asked.question, asked.answer
        if number % 3 == 1:
            absent = random.Random(image).choice(sorted(set(KINDS) - kinds_in(scene)))
            question = f"What color is the {absent} in the image?"
            kind, answer = "adversarial", f"There is no {absent} in the image."
        elif number % 3 == 2:
            kind, question = "holistic", "Describe the picture."
            answer = _described(asked.picture)
        records.append(
            {
                "question_type": kind,
                "question_topic": "drawn",
                "image_id": f"{number:016x}",
                "image_src": f"https://pictures.example/{image}",
                "image_content": sorted(kinds_in(scene)),
                "question": question,
                "gt_answer": answer,
                "model_answer": "",
            }
        )
        write_image(root / mmhal.IMAGES / image, picture(asked.picture))
    write_json(root / mmhal.QUESTIONS, records)


class ObjectGraph:
    """What the benchmark pickles: an object with synonyms in its attribute ``graph``."""

    def __init__(self, graph: dict[str, dict[str, list[str]]]) -> None:
        self.graph = graph


class ActionGraph(ObjectGraph):
    """The same for actions."""


def sample_mementos(root: Path) -> None:
    """Stories as rows of frames, in three domains whose tables name their columns differently."""
    heads = {"dl": "image_name,description", "robo": "image,description"}
    for domain in mementos.DOMAINS:
        lines = [heads.get(domain, "image_name,gt_description")]
        for number in range(COUNT // 3):
            story = storytelling.make_example(random.Random(f"{domain}/{number}"), SPLIT)
            name = f"{domain}_{number}.png"
            told = [description.references_for(scene)[0] for scene in story.scenes]
            lines.append(f'{name},"{" Then ".join(told)}"')
            write_image(root / "images" / domain / name, _strip(story.scenes))
        write_text(root / f"{domain}_description.csv", "\n".join(lines) + "\n")
        objects = ObjectGraph({"couch": {"": ["sofa"]}, "mug": {"": ["cup"]}})
        actions = ActionGraph({"sprint": {"": ["run"]}, "take": {"nap": ["sleep"]}})
        for kind, graph in (("object", objects), ("action", actions)):
            path = root / "sym_graphs" / f"{domain}_{kind}_graph_v1.pkl"
            with write_aside(path, binary=True) as file:
                pickle.dump(graph, file)


def _strip(frames: tuple[Scene, ...]) -> Image.Image:
    """Frames side by side."""
    strip = Image.new("RGB", (SIZE * len(frames), SIZE))
    for place, scene in enumerate(frames):
        strip.paste(draw(scene, SIZE), (SIZE * place, 0))
    return strip
