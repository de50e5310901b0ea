"""Everything that can be asked: a server, a function, a model of transformers, one of ours."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaProcessor,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from polyptych.errors import PolyptychError
from polyptych.evaluation.answering import obeyed, run_key
from polyptych.evaluation.local_model import LocalModel
from polyptych.evaluation.runner import generate
from polyptych.evaluation.task import GenerationSettings
from polyptych.language.tokenizer import train_tokenizer
from polyptych.schema import Example, ImageBlock, ImageRef, Message, TextBlock
from polyptych.serving import api
from polyptych.serving.answerers import FunctionAnswerer, is_in_memory, load_answerer
from polyptych.serving.api import KEY_VARIABLE, ApiModel
from polyptych.serving.transformers_model import TransformersModel
from polyptych.testing import tiny_examples, tiny_model, tiny_processor

RED, BLUE = (255, 0, 0), (0, 0, 255)


def picture(color: tuple[int, int, int]) -> ImageRef:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), color).save(buffer, "PNG")
    return ImageRef(data=buffer.getvalue())


def question(identity: str, *colors: tuple[int, int, int], text: str = "Which?") -> Example:
    blocks: list[Any] = []
    for color in colors:
        blocks += [ImageBlock(), TextBlock(f"after {color[0]}. ")]
    message = Message("user", (*blocks, TextBlock(text)))
    return Example(identity, (message,), tuple(map(picture, colors)))


# A server


class Server:
    """Says which parts it got, images by color; fails where it is told to."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.models = ["toy"]
        self.failures: list[int] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply(200, {"data": [{"id": name} for name in server.models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.bodies.append(body)
                server.keys.append(self.headers["Authorization"])
                if server.failures:
                    self._reply(server.failures.pop(0), {"error": "not\nnow"})
                    return
                parts = [_seen(part) for part in body["messages"][-1]["content"]]
                answer = {"role": "assistant", "content": "".join(parts)}
                self._reply(200, {"choices": [{"message": answer}]})

            def _reply(self, status: int, content: dict[str, Any]) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


def _seen(part: dict[str, Any]) -> str:
    if part["type"] == "text":
        return part["text"]
    data = part["image_url"]["url"].removeprefix("data:image/png;base64,")
    pixel = Image.open(io.BytesIO(base64.b64decode(data))).getpixel((0, 0))
    return {RED: "(red)", BLUE: "(blue)"}[pixel]  # type: ignore[index]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(api, "FIRST_PAUSE", 0.01)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    found = Server()
    thread = threading.Thread(target=found.http.serve_forever, args=(0.01,))
    thread.start()
    yield found
    found.http.shutdown()
    thread.join()
    found.http.server_close()


def test_a_server_gets_images_at_their_places_and_the_settings(server: Server) -> None:
    model = load_answerer(server.url, api_model="toy")
    examples = [question("a", RED, BLUE), question("b", BLUE, RED), question("c")]
    settings = GenerationSettings(num_beams=4, max_new_tokens=7)
    answers = model.answer(examples, settings)
    assert answers == [
        "(red)after 255. (blue)after 0. Which?",
        "(blue)after 0. (red)after 255. Which?",
        "Which?",
    ]
    assert all(body["max_tokens"] == 7 and body["temperature"] == 0 for body in server.bodies)
    assert server.keys == [None] * 3
    assert obeyed(model, settings) == GenerationSettings(max_new_tokens=7)
    assert model.context()["model"]["url"] == server.url
    sampled = GenerationSettings(do_sample=True, temperature=0.5, top_p=0.8, seed=3)
    model.answer(examples[2:], sampled)
    assert {k: server.bodies[-1][k] for k in ("temperature", "top_p", "seed")} == {
        "temperature": 0.5,
        "top_p": 0.8,
        "seed": 3,
    }


def test_the_only_model_of_a_server_needs_no_name(server: Server) -> None:
    assert ApiModel(server.url).name == "toy"
    server.models = ["one", "two"]
    with pytest.raises(PolyptychError, match=r"has 2 models, name one with --api-model: one, two"):
        ApiModel(server.url)


def test_a_busy_server_is_asked_again_and_a_refusal_is_one_line(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    model = ApiModel(server.url, "toy")
    server.failures = [503, 429]
    assert model.answer([question("a")], GenerationSettings()) == ["Which?"]
    assert server.keys == ["Bearer secret"] * 3
    server.failures = [400]
    with pytest.raises(PolyptychError, match=r"example 'a': HTTP 400: .*not.*now") as refusal:
        model.answer([question("a")], GenerationSettings())
    assert "secret" not in str(refusal.value)
    server.failures = [500] * 4
    with pytest.raises(PolyptychError, match="HTTP 500"):
        model.answer([question("a")], GenerationSettings())


def test_no_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "FIRST_PAUSE", 0.01)
    with pytest.raises(PolyptychError, match=r"list of models: .*refused"):
        load_answerer("http://127.0.0.1:9/v1")


def test_a_run_over_a_failing_server_goes_on_where_it_stopped(
    server: Server, tmp_path: Path
) -> None:
    model = ApiModel(server.url, "toy")
    examples = [question(str(number), text=f"What is {number}?") for number in range(4)]
    settings, out = GenerationSettings(batch_size=1), tmp_path / "answers.jsonl"

    class Dying(ApiModel):
        def answer(self, batch: Any, wanted: GenerationSettings) -> list[str]:
            if len(server.bodies) == 2:
                server.failures = [400]
            return super().answer(batch, wanted)

    with pytest.raises(PolyptychError, match="HTTP 400"):
        generate(Dying(server.url, "toy"), examples, out, settings=settings, progress=False)
    assert len(server.bodies) == 3
    predictions = generate(model, examples, out, settings=settings, progress=False)
    assert [p.text for p in predictions] == [f"What is {n}?" for n in range(4)]
    assert len(server.bodies) == 5, "two answers were kept"


# A function


def test_a_function_gets_the_prompt_and_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_answers.py").write_text(
        "number = 3\n"
        "def colors(prompt, images):\n"
        "    return prompt + ' ' + str([i.getpixel((0, 0))[0] for i in images])\n"
        "def nothing(prompt, images):\n"
        "    return None\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not is_in_memory("my_answers:colors")
    function = load_answerer("my_answers:colors")
    assert function.answer([question("a", BLUE, RED)], GenerationSettings()) == [
        "<image>after 0. <image>after 255. Which? [0, 255]"
    ]
    assert obeyed(function, GenerationSettings(num_beams=5)) == GenerationSettings()
    with pytest.raises(PolyptychError, match="example 'a': expected a text, got NoneType"):
        load_answerer("my_answers:nothing").answer([question("a")], GenerationSettings())
    with pytest.raises(PolyptychError, match="cannot import no_module_here"):
        FunctionAnswerer("no_module_here", "f")
    for name in ("number", "missing"):
        with pytest.raises(PolyptychError, match=f"has no function '{name}'"):
            FunctionAnswerer("my_answers", name)
    with pytest.raises(PolyptychError, match="is no http:// address"):
        load_answerer("my_answers:colors", api_model="x")


# Models in memory


CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {% for b in m['content'] %}"
    "{% if b['type'] == 'image' %}<image>{% else %}{{ b['text'] }}{% endif %}{% endfor %} "
    "{% endfor %}assistant:"
)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that is not ours: ViP-LLaVA of random weights."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["user: what is it? assistant: a red ball after 0 255."], 300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=14,
        patch_size=7,
    )
    text = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=len(tokenizer),
    )
    config = VipLlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layers=[-2, -1],
    )
    folder = tmp_path_factory.mktemp("foreign")
    VipLlavaForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": 14, "width": 14}
    LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=True),
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(folder)
    return folder


def test_a_plain_folder_of_transformers_can_be_asked(foreign: Path) -> None:
    model = load_answerer(str(foreign))
    assert isinstance(model, TransformersModel)
    settings = GenerationSettings(max_new_tokens=5)
    examples = [question("a", RED, BLUE), question("b", BLUE, RED), question("c", RED)]
    together = model.answer(examples, settings)
    assert together == [model.answer([example], settings)[0] for example in examples]
    assert any(together)
    assert model.hash == load_answerer(str(foreign)).hash
    context = model.context()
    assert context["model"]["type"] == "vipllava"
    assert "CLIPImageProcessor" in context["image_backend"]
    processor = model.processor
    processor.chat_template = None
    with pytest.raises(PolyptychError, match="no chat template"):
        TransformersModel(model.model, processor, "x")


def test_a_folder_that_nobody_knows_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(PolyptychError, match=r"type 'bert'; supported: .*; and .*transformers"):
        load_answerer(str(tmp_path))
    with pytest.raises(PolyptychError, match="no model here"):
        load_answerer(str(tmp_path / "nothing"))


def test_our_models_are_known_by_weights_and_layout() -> None:
    one = LocalModel(tiny_model(), tiny_processor())
    again = LocalModel(tiny_model(), tiny_processor(), name="again")
    other = LocalModel(tiny_model(seed=1), tiny_processor())
    longer = LocalModel(tiny_model(), tiny_processor(max_length=128))
    settings = GenerationSettings(max_new_tokens=4)
    assert one.hash == again.hash
    assert len({one.hash, other.hash, longer.hash}) == 3
    assert run_key(one, settings) != run_key(one, GenerationSettings())
    assert one.answer(tiny_examples(2), settings) == again.answer(tiny_examples(2), settings)
    assert one.context()["image_backend"] == "BlipImageProcessorPil"
