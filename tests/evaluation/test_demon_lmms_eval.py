"""The lmms-eval task folder: its structure and what its functions return; lmms-eval is not used."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from polyptych import cli
from polyptych.evaluation.demon.lmms_eval_export import task_name, write_lmms_eval
from polyptych.evaluation.tasks.demon import CATEGORIES, datasets_of, make_sample, read_benchmark


class Loader(yaml.SafeLoader):
    """Reads ``!function utils.name`` as that text."""


Loader.add_constructor("!function", lambda loader, node: f"!{loader.construct_scalar(node)}")


def load(path: Path) -> dict[str, Any]:
    content = yaml.load(path.read_text(), Loader)
    include = content.pop("include", None)
    return {**load(path.parent / include), **content} if include else content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("lmms")
    write_lmms_eval(home / "tasks", read_benchmark(make_sample(home / "data", per_task=1)))
    return home / "tasks"


@pytest.fixture(scope="module")
def utils(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported_utils", folder / "utils.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not any(name.partition(".")[0] == "lmms_eval" for name in sys.modules)
    return module


def documents(task: dict[str, Any]) -> list[dict[str, Any]]:
    path = Path(task["dataset_kwargs"]["data_files"][task["test_split"]])
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_task_has_its_keys_functions_and_data(folder: Path, utils: ModuleType) -> None:
    group = load(folder / "demon.yaml")
    assert group["group"] == "demon"
    assert len(group["task"]) == 11
    for name in group["task"]:
        task = load(folder / f"{name}.yaml")
        assert task["task"] == name
        assert task["dataset_path"] == "json"
        assert task["output_type"] == "generate_until"
        assert task["generation_kwargs"]["do_sample"] is False
        functions = [value[1:] for value in task.values() if str(value).startswith("!")]
        assert len(functions) == 5
        for function in functions:
            module, _, attribute = function.partition(".")
            assert module == "utils"
            assert callable(getattr(utils, attribute))
        (doc,) = documents(task)
        results = utils.process_results(doc, [utils.doc_to_target(doc)])
        assert [m["metric"] for m in task["metric_list"]] == list(results)
        assert results["demon_fixed"] == pytest.approx(100)


def test_tasks_are_grouped_by_category(folder: Path) -> None:
    groups = {p.stem: load(p)["task"] for p in folder.glob("*.yaml") if "group" in load(p)}
    assert len(groups) == 1 + len(CATEGORIES)
    everything = groups.pop("demon")
    assert sorted(name for names in groups.values() for name in names) == sorted(everything)


def test_images_stand_where_the_prompt_says(folder: Path, utils: ModuleType) -> None:
    task = load(folder / f"{task_name('COMICS_Panel')}.yaml")
    (doc,) = documents(task)
    images = utils.doc_to_visual(doc)
    assert utils.doc_to_text(doc).count("<image>") == len(images) == len(doc["images"])
    assert all(isinstance(image, Image.Image) and image.mode == "RGB" for image in images)
    (message,) = utils.doc_to_messages(doc)
    content = message["content"]
    assert message["role"] == "user"
    assert sum(block["type"] == "image" for block in content) == len(images)
    rebuilt = "".join("<image>" if b["type"] == "image" else b["text"] for b in content)
    assert rebuilt == doc["prompt"]


def test_an_answer_that_stops_the_published_scorer_counts_nothing(
    folder: Path, utils: ModuleType
) -> None:
    (doc,) = documents(load(folder / "demon_vist.yaml"))
    assert utils.process_results(doc, ["." * 60]) == {"demon_released": 0, "demon_fixed": 0}


def test_without_data_all_tasks_of_the_split_are_written(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["demon", "lmms-eval", str(tmp_path), "--split", "full"])
    assert result.exit_code == 0, result.output
    assert "no data were written" in result.stderr
    assert load(tmp_path / "demon.yaml")["task"] == [task_name(d.name) for d in datasets_of("full")]
    assert not (tmp_path / "data").exists()
    assert task_name("Spot-the-Diff") == "demon_spot_the_diff"
