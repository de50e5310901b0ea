"""ScienceQA (Lu et al. 2022) in the two forms of CaMML: questions with an image, and fine-tuned.

    ROOT/problems.json               {ID: {"choices", "answer": index, "split", ...}}, published
    ROOT/llava_test_CQM-A.json       [{"id", "image"?, "conversations": [{"from", "value"}, ...]}]
    ROOT/llava_test_QCM-LEPA.json    the same questions for the fine-tuned model
    ROOT/images/test/ID/image.png

``scienceqa_img`` keeps the questions with an image and asks for a letter; ``scienceqa`` takes all,
asked as their file has them, and scores those with and without image beside the whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from polyptych.data.records import IMAGE_TOKEN, read_json
from polyptych.errors import PolyptychError
from polyptych.evaluation.faults import item
from polyptych.evaluation.scoring.choice import LETTERS, Flavor, choice_scorer
from polyptych.evaluation.task import Task
from polyptych.evaluation.tasks.llava_files import (
    LETTER_ANSWER,
    LONG_SETTINGS,
    fail,
    identity_of,
    image_path,
    make_example,
    objects_in,
    required_file,
    text_of,
)
from polyptych.schema import Example

Form = Literal["scienceqa_img", "scienceqa"]

FILES: dict[Form, str] = {
    "scienceqa_img": "llava_test_CQM-A.json",
    "scienceqa": "llava_test_QCM-LEPA.json",
}
RELEASED: dict[Form, Flavor] = {"scienceqa_img": "letter_released", "scienceqa": "answer_released"}
"""The scorer behind the published numbers of each form."""


def scienceqa_task(form: Form, root: str | Path) -> Task:
    """One of the two forms.

    Raises:
        PolyptychError: For an unknown form.
    """
    if form not in FILES:
        raise PolyptychError(f"no form {form!r} of ScienceQA; known: {', '.join(FILES)}")
    flavors: tuple[Flavor, ...] = (RELEASED[form], "fixed")
    scorers = tuple(choice_scorer(flavor, "modality") for flavor in flavors)
    return Task(form, lambda: read_scienceqa(form, root), scorers, LONG_SETTINGS)


def read_scienceqa(form: Form, root: str | Path) -> list[Example]:
    """Read the questions of one form, in the order of their file.

    Raises:
        PolyptychError: For a question that ``problems.json`` does not know, an id that occurs
            twice, or an answer that is no index of a choice; named with file and id.
    """
    path = required_file(root, FILES[form])
    problems_path = required_file(root, "problems.json")
    problems = read_json(problems_path)
    if not isinstance(problems, dict):
        fail(str(problems_path), "expected an object of problems by id")
    examples: dict[str, Example] = {}
    for number, line in enumerate(objects_in(read_json(path), None, str(path))):
        with item():
            identity = identity_of(line, "id", f"{path} record {number}")
            where = f"{path} question {identity!r}"
            if identity in examples:
                fail(where, "this question occurs twice")
            if identity not in problems:
                fail(where, f"it is not in {problems_path}")
            if form == "scienceqa_img" and "image" not in line:
                continue
            truth = _truth(problems[identity], f"{problems_path} question {identity!r}")
            subject = str(problems[identity].get("subject", ""))
            examples[identity] = _example(form, identity, line, truth, subject, Path(root), where)
    if not examples:
        fail(str(path), "no questions in it" + (" with an image" if "img" in form else ""))
    return list(examples.values())


def _example(
    form: Form,
    identity: str,
    line: dict[str, Any],
    truth: tuple[list[str], int],
    subject: str,
    root: Path,
    where: str,
) -> Example:
    turns = objects_in(line.get("conversations"), None, where)
    if not turns:
        fail(where, "'conversations' is empty")
    question = text_of(turns[0], "value", where).replace(IMAGE_TOKEN, "").strip()
    choices, answer = truth
    image = line.get("image")
    return make_example(
        identity,
        question + LETTER_ANSWER if form == "scienceqa_img" else question,
        image_path(root / "images" / "test", image, where) if image is not None else None,
        where,
        references=(LETTERS[answer],),
        choices=choices,
        metadata={
            "task": form,
            "modality": "text" if image is None else "image",
            "subject": subject,
        },
    )


def _truth(problem: Any, where: str) -> tuple[list[str], int]:
    choices = problem.get("choices") if isinstance(problem, dict) else None
    if not isinstance(choices, list) or not all(isinstance(text, str) for text in choices):
        fail(where, "the problem has no list of texts 'choices'")
    answer = problem.get("answer")
    if type(answer) is not int or not 0 <= answer < len(choices):
        fail(where, f"'answer' is {answer!r} for {len(choices)} choices")
    return choices, answer
