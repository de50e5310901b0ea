"""A server of OpenAI's chat completions as an answerer: vLLM, SGLang, llama.cpp, ours, and others.

    POST {url}/chat/completions   {"model", "messages": [{"role", "content": [...]}], "max_tokens"}

Images travel as PNG in data URLs, at their places between the texts. A key is sent only if the
environment variable ``POLYPTYCH_API_KEY`` has one.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from polyptych.data.images import load_image
from polyptych.errors import PolyptychError
from polyptych.evaluation.answering import digest
from polyptych.evaluation.task import GenerationSettings
from polyptych.schema import Example, ImageBlock

KEY_VARIABLE = "POLYPTYCH_API_KEY"
ATTEMPTS = 4
FIRST_PAUSE = 1.0
"""Seconds before the second attempt; each further pause is twice as long."""
TIMEOUT = 600.0
"""Seconds to wait for one answer."""
_BUSY = frozenset({408, 409, 429, 500, 502, 503, 504})


class ApiModel:
    """A model behind a server; ``batch_size`` questions are asked at the same time.

    Args:
        url: Address up to and with ``/v1``.
        model: What the server calls the model; default: the only one that it lists.

    Raises:
        PolyptychError: If no model is named and the server does not list exactly one.
    """

    tokens_per_image = 256
    ignores = frozenset({"num_beams", "repetition_penalty", "length_penalty"})

    def __init__(self, url: str, model: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.name = model or self._only_model()
        self.hash = digest(self.url, self.name)

    def answer(self, examples: Sequence[Example], settings: GenerationSettings) -> list[str]:
        """Ask about all examples at once."""
        with ThreadPoolExecutor(max_workers=max(1, len(examples))) as pool:
            return list(pool.map(lambda example: self._ask(example, settings), examples))

    def context(self) -> dict[str, Any]:
        """Address and name; what the server decodes images with is not known."""
        model = {"name": self.name, "type": "server", "url": self.url, "hash": self.hash}
        return {"model": model, "image_backend": "sent as PNG; the server's own from there"}

    def _ask(self, example: Example, settings: GenerationSettings) -> str:
        body: dict[str, Any] = {
            "model": self.name,
            "messages": api_messages(example),
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature if settings.do_sample else 0.0,
            "seed": settings.seed,
        }
        if settings.do_sample:
            body["top_p"] = settings.top_p
        where = f"example {example.id!r}"
        reply = self._request("/chat/completions", where, body)
        try:
            text = reply["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise PolyptychError(f"{self.url}: {where}: a reply without an answer") from error
        return text if isinstance(text, str) else ""

    def _only_model(self) -> str:
        listed = self._request("/models", "list of models")
        names = [str(model.get("id")) for model in listed.get("data", [])]
        if len(names) != 1:
            raise PolyptychError(
                f"{self.url} has {len(names)} models, name one with --api-model: {', '.join(names)}"
            )
        return names[0]

    def _request(self, path: str, where: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The reply's JSON; a busy server is asked again after a pause."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=content, headers=headers)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                    reply = json.load(response)
            except (OSError, ValueError, http.client.HTTPException) as error:
                if attempt < ATTEMPTS and _is_passing(error):
                    time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
                    continue
                raise PolyptychError(f"{self.url}: {where}: {_reason(error)}") from error
            if not isinstance(reply, dict):
                raise PolyptychError(f"{self.url}: {where}: the reply is no object")
            return reply
        raise AssertionError("the last attempt returns or raises")


def api_messages(example: Example) -> list[dict[str, Any]]:
    """The prompt in OpenAI's form, images at their places.

    ``user: <image>What?`` becomes ``[{"role": "user", "content": [{"type": "image_url", ...},
    {"type": "text", "text": "What?"}]}]``.

    Raises:
        PolyptychError: For an image that cannot be read.
    """
    images = iter(example.images)

    def parts(content: Sequence[Any]) -> Iterator[dict[str, Any]]:
        for block in content:
            if isinstance(block, ImageBlock):
                image = load_image(next(images), where=f"example {example.id!r}")
                yield {"type": "image_url", "image_url": {"url": png_url(image)}}
            else:
                yield {"type": "text", "text": block.text}

    return [{"role": m.role, "content": list(parts(m.content))} for m in example.prompt]


def png_url(image: Image.Image) -> str:
    """A data URL with the image as PNG, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _is_passing(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code in _BUSY
    return isinstance(error, TimeoutError | ConnectionError | http.client.HTTPException)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        said = " ".join(error.read(500).decode(errors="replace").split())
        return f"HTTP {error.code}: {said or error.reason}"
    return str(getattr(error, "reason", None) or error)
