"""Every form of bad input, from the outside: one clear line, exit code 2, nothing half-written.

What is odd but readable (CMYK, 16 bits, transparency, animation; no picture or forty) is answered.
"""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner, Result

import polyptych
from polyptych import cli
from polyptych.data.images import MAX_IMAGE_PIXELS
from polyptych.data.records import write_records
from polyptych.errors import PolyptychError
from polyptych.evaluation import local_model
from polyptych.evaluation.task import GenerationSettings
from polyptych.models.checkpoint import load_model, load_processor
from polyptych.storybook.generation import make_examples, write_dataset
from polyptych.testing import tiny_examples, tiny_image, tiny_model, tiny_processor


def run(*words: str | Path | int) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words], prog_name="polyptych")


def refused(result: Result, *parts: object) -> str:
    """Exit code 2 and one line, which has all parts."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for part in parts:
        assert str(part) in lines[0]
    return lines[0]


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "set" / "records.jsonl"
    write_records(path, tiny_examples(9))
    return path


def ask(model: Path, question: str, *pictures: Path) -> Result:
    images = [word for picture in pictures for word in ("--image", str(picture))]
    words = ["--beams", 1, "--max-new-tokens", 3, "--device", "cpu"]
    return run("ask", model, question, *images, *words)


def generate(model: Path, records: Path, out: Path) -> Result:
    words = ["--max-new-tokens", 3, "--batch-size", 2, "--device", "cpu"]
    return run("generate", records, "--model", model, "--out", out, *words)


# Pictures


def png(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey_16_bits() -> bytes:
    return png(Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 70))


def animation() -> bytes:
    frames = [Image.new("RGB", (30, 30), color) for color in ("red", "blue")]
    return png(frames[0], "GIF", save_all=True, append_images=frames[1:])


ODD: dict[str, Callable[[], bytes]] = {
    "cmyk.jpg": lambda: png(Image.new("CMYK", (30, 30), (0, 255, 255, 0)), "JPEG"),
    "grey16.png": grey_16_bits,
    "alpha.png": lambda: png(Image.new("RGBA", (30, 30), (255, 0, 0, 99))),
    "animated.gif": animation,
    "thin.png": lambda: png(Image.new("RGB", (1, 200), "red")),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures_are_answered(model: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(ODD[name]())
    result = ask(model, "What is it?", path)
    assert result.exit_code == 0, result.output
    assert not result.stderr


def truncated() -> bytes:
    data = tiny_image(0).data
    assert data is not None
    return data[: len(data) // 2]


BROKEN: dict[str, tuple[Callable[[], bytes], list[object]]] = {
    "truncated.png": (truncated, ["cannot be decoded"]),
    "text.png": (lambda: b"hello", ["not an image file"]),
    "empty.png": (lambda: b"", ["not an image file"]),
    "bomb.png": (
        lambda: png(Image.new("1", (20_000, 20_000))),
        ["too large", 400_000_000, MAX_IMAGE_PIXELS],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pictures_are_refused_by_name(model: Path, tmp_path: Path, name: str) -> None:
    make, parts = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(make())
    refused(ask(model, "What is it?", path), path, *parts)
    refused(ask(model, "What is it?", tmp_path / "no.png"), tmp_path / "no.png", "does not exist")


def test_a_check_lists_every_bad_picture_with_its_line(tmp_path: Path) -> None:
    lines = []
    for number, (name, (make, _)) in enumerate(BROKEN.items(), start=1):
        (tmp_path / name).write_bytes(make())
        lines.append(record(f"r{number}", images=[name, "gone.png"]))
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run("data", "check", path)
    assert result.exit_code == 2
    problems = result.stderr.splitlines()
    assert len(problems) == 2 * len(BROKEN)
    for number, (name, (_, parts)) in enumerate(BROKEN.items(), start=1):
        bad, gone = problems[2 * number - 2 : 2 * number]
        for part in (f"line {number} ", name, *parts):
            assert str(part) in bad
        assert f"line {number} " in gone
        assert "gone.png does not exist" in gone
    assert f"{2 * len(BROKEN)} problem(s)" in result.stdout


@pytest.mark.parametrize("count", [0, 1, 40])
def test_any_number_of_pictures(model: Path, tmp_path: Path, count: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(tiny_image(1).data or b"")
    result = ask(model, "What do these show?", *[path] * count)
    assert result.exit_code == 0, result.output
    assert not result.stderr


# Questions and records


def record(identity: str, text: str = "What?", images: list[str] | None = None) -> dict:
    images = [] if images is None else images
    blocks: list[dict] = [{"type": "image"} for _ in images]
    content = [*blocks, {"type": "text", "text": text}]
    return {
        "id": identity,
        "messages": [{"role": "user", "content": content}],
        "images": images,
        "references": ["a dog."],
    }


def test_places_and_pictures_differ(model: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(tiny_image(1).data or b"")
    refused(ask(model, "<image> and <image>?", picture), "2 <image>", "1 pictures")

    bad = record("r2", images=["a.png"])
    bad["images"].append("b.png")
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(record("r1")) + "\n" + json.dumps(bad) + "\n")
    out = tmp_path / "out.jsonl"
    line = refused(generate(model, path, out), f"{path} line 2", "'r2'", "1 image placeholder")
    assert "2 image(s)" in line
    assert not out.exists()

    with pytest.raises(PolyptychError, match="prompt 2: 1 <image> for 2 images"):
        image = Image.new("RGB", (9, 9))
        tiny_processor()(text=["<image> a", "<image> b"], images=[[image], [image, image]])


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_instruction(model: Path, tmp_path: Path, text: str) -> None:
    refused(ask(model, text), "the question is empty")
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(record("r1", text)) + "\n")
    refused(generate(model, path, tmp_path / "out.jsonl"), f"{path} line 1", "empty instruction")


def test_a_long_prompt_is_cut_aloud_but_no_image_token(model: Path, tmp_path: Path) -> None:
    """In a process of its own: what is said has to reach the terminal."""
    (tmp_path / "a.png").write_bytes(tiny_image(1).data or b"")
    long = record("long", "dog " * 900 + "what?", images=["a.png"] * 5)
    path, out = tmp_path / "records.jsonl", tmp_path / "out.jsonl"
    path.write_text(json.dumps(long) + "\n")
    words = ["generate", path, "--model", model, "--out", out, "--max-new-tokens", "3"]
    process = subprocess.run(
        [sys.executable, "-m", "polyptych.cli", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(Path(polyptych.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    said = [line for line in process.stderr.splitlines() if "cut" in line]
    assert len(said) == 1
    for part in ("example long: cut ", "prompt tokens", "context of 256", "image tokens are kept"):
        assert part in said[0]
    assert len(out.read_text().splitlines()) == 1


def test_pictures_that_fill_the_context(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(tiny_image(1).data or b"")
    line = refused(ask(model, "What?", *[path] * 90), "example question", "context of 256")
    assert "271 tokens" in line  # 90 pictures of 3 tokens, and the beginning of the row


def test_a_broken_line_7(model: Path, records: Path, tmp_path: Path) -> None:
    lines = records.read_text().splitlines(keepends=True)
    lines[6] = lines[6][: len(lines[6]) // 2] + "\n"
    records.write_text("".join(lines))
    out = tmp_path / "out.jsonl"
    refused(generate(model, records, out), f"{records} line 7", "not valid JSON")
    assert not out.exists()
    scores = tmp_path / "scores"
    refused(run("evaluate", records, "--model", model, "--out", scores), f"{records} line 7")
    assert not scores.exists()
    checked = run("data", "check", records)
    assert checked.exit_code == 2
    assert len(checked.stderr.splitlines()) == 1
    assert f"{records} line 7" in checked.stderr
    assert "9 record(s)" in checked.stdout


# Models


def tiny_llama(folder: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    LlamaForCausalLM(
        LlamaConfig(**sizes, num_hidden_layers=1, num_key_value_heads=2, vocab_size=320)
    ).save_pretrained(folder)
    tiny_processor().tokenizer.save_pretrained(folder)


def tiny_bert(folder: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    BertModel(BertConfig(**sizes, num_hidden_layers=1, vocab_size=50)).save_pretrained(folder)


@pytest.mark.parametrize(("make", "family"), [(tiny_llama, "llama"), (tiny_bert, "bert")])
def test_a_model_of_another_family(
    make: Callable[[Path], None], family: str, records: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    make(folder)
    supported = f"a model of type '{family}'; supported: polyptych_blip2, "
    out = tmp_path / "out.jsonl"
    refused(ask(folder, "What?"), folder, supported)
    refused(generate(folder, records, out), folder, supported)
    refused(run("data", "show", records, "--model", folder), folder, supported)
    assert not out.exists()


def spoil_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def spoil_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def remove_processor(folder: Path) -> None:
    (folder / "processor_config.json").unlink()


def widen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] += 1
    (folder / "config.json").write_text(json.dumps(config))


def add_a_layer(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (spoil_config, "not a valid JSON file"),
        (spoil_weights, "weights cannot be read"),
        (remove_weights, "model.safetensors"),
        (remove_processor, "no processor here (no processor_config.json)"),
        (widen, "weights"),
        (add_a_layer, "missing keys in the weights"),
    ],
)
def test_a_spoiled_model_folder(spoil: Callable[[Path], None], part: str, tmp_path: Path) -> None:
    folder = tmp_path / "spoiled"
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    spoil(folder)
    refused(ask(folder, "What?"), folder, part)


def test_no_such_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    for name in ("nothing", "./nothing", "a/b/c", "runs/empty"):  # the last looks like a hub name
        for load in (load_model, load_processor):
            with pytest.raises(PolyptychError, match=rf"^{name}: no \w+ here .*; bundled: "):
                load(name)


def test_a_processor_is_loaded_alone(model: Path, tmp_path: Path) -> None:
    assert load_processor(model).settings == tiny_processor().settings
    tiny_processor(tokens_per_image=5).save_pretrained(tmp_path)
    assert load_processor(tmp_path).tokens_per_image == 5


def test_loading_and_saving_show_no_bars(model: Path, tmp_path: Path) -> None:
    """In a process of its own: other tests may have turned the bars off already."""
    process = subprocess.run(
        [sys.executable, "-m", "polyptych.cli", "ask", str(model), "What?", "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(Path(polyptych.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0
    assert process.stderr == ""


# Writing


@contextmanager
def disk_that_ends(after: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: the system refuses as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_while_a_set_is_drawn(tmp_path: Path) -> None:
    words = ["data", "make", "storybook", "--task", "description", "--count", 3]
    with disk_that_ends(after=1000):
        result = run(*words, "--out", tmp_path / "set")
    refused(result, "cannot write", tmp_path / "set", "File too large")
    assert not files(tmp_path)


def test_a_full_disk_while_answers_are_written(model: Path, records: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    with disk_that_ends(after=500):
        result = generate(model, records, out)
    refused(result, "cannot write", out, "File too large")
    assert not out.exists()
    assert generate(model, records, whole).exit_code == 0
    assert generate(model, records, out).exit_code == 0, "the run goes on"
    assert without_seconds(out) == without_seconds(whole)


def without_seconds(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_full_disk_keeps_the_earlier_file(tmp_path: Path) -> None:
    predictions, scores = tmp_path / "p.jsonl", tmp_path / "scores.json"
    line = {"id": "a", "prediction": "a dog", "references": ["a dog"]}
    predictions.write_text(json.dumps(line) + "\n")
    scores.write_text("earlier")
    with disk_that_ends(after=20):
        result = run("score", predictions, "--json", scores)
    refused(result, f"cannot write {scores}: File too large")
    assert scores.read_text() == "earlier"
    assert files(tmp_path) == [predictions, scores]


def test_an_interruption_between_answers(
    model: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    answer, batches = local_model.answer, []

    def interrupted(*arguments: object) -> list[str]:
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(1)
        return answer(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(local_model, "answer", interrupted)
        refused(generate(model, records, out), "interrupted")
    assert not out.exists()
    assert generate(model, records, whole).exit_code == 0
    assert generate(model, records, out).exit_code == 0
    assert without_seconds(out) == without_seconds(whole)
    assert not list(tmp_path.glob("*.running"))


def test_requests_are_checked_before_a_folder_is_made(tmp_path: Path) -> None:
    out = tmp_path / "set"
    request = {"count": 1, "split": "train", "seed": 0}
    for task, options, part in (
        ("juggling", {}, "unknown Storybook task 'juggling'; known: group_captioning"),
        ("description", {"split": "holiday"}, "unknown split 'holiday'; known: train, validation"),
        ("description", {"panels": (3, 4)}, "'description' has no option 'panels'; known: things"),
        ("storytelling", {"rng": 1}, "'storytelling' has no option 'rng'; known: panels"),
    ):
        with pytest.raises(PolyptychError, match=part):
            write_dataset(task, out, **{**request, **options})
        with pytest.raises(PolyptychError, match=part):
            make_examples(task, **{**request, **options})
        assert not out.exists()
    words = ["data", "make", "storybook", "--out", out]
    refused(run(*words, "--task", "juggling"), "'juggling'")
    refused(run(*words, "--task", "description", "--split", "holiday"), "'holiday'")
    assert not out.exists()


def test_forty_pictures_and_none_in_one_batch() -> None:
    model, processor = tiny_model(), tiny_processor(max_length=None)
    examples, settings = tiny_examples(2, (40, 0)), GenerationSettings(max_new_tokens=3)
    alone = [local_model.answer(model, processor, [example], settings)[0] for example in examples]
    assert local_model.answer(model, processor, examples, settings) == alone
