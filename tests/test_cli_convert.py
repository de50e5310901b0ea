"""``polyptych convert``: published files there and back at tiny size, every problem in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner, Result

from polyptych import cli
from polyptych.methods.camml import conversion as camml_conversion
from polyptych.methods.camml.conversion import BERT_SIZES
from polyptych.methods.cheetah.conversion import to_released as cheetah_to_released
from polyptych.methods.sam.conversion import NAMES
from polyptych.models.blip2_conversion import to_published
from polyptych.models.checkpoint import load_model
from polyptych.models.llava_export import write_original
from polyptych.models.weights import read_weights
from polyptych.recipes import Recipe
from polyptych.testing import (
    TINY_QUERIES,
    tiny_camml,
    tiny_camml_processor,
    tiny_cheetah,
    tiny_llava,
    tiny_llava_processor,
    tiny_model,
    tiny_processor,
)

WORDS = """###Human: what is different between these pictures ###Assistant: the dog sleeps
[INST] <<SYS>> <</SYS>> first second third [/INST] a red ball is under the tree
A chat between a curious user USER: ASSISTANT: mia runs on the beach"""

Weights = dict[str, Tensor]


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["convert", *map(str, words)], prog_name="polyptych")


def succeed(*words: str | Path) -> None:
    result = run(*words)
    assert result.exit_code == 0, result.output
    out = words[words.index("--out") + 1]
    assert result.stdout == f"written to {out}\n"


def assert_refused(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("polyptych: ")
    for part in parts:
        assert part in line


def assert_same(left: Weights, right: Weights) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def without_key_bias(model: Any) -> Any:
    """As in every published checkpoint of the BLIP-2 family."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("qkv.bias"):
                parameter.chunk(3)[1].zero_()
    return model


def sizes_of(model: Any, folder: Path) -> Path:
    """A recipe with the tiny sizes."""
    recipe = Recipe(name="tiny", model={"config": model.config.to_dict()})
    file = folder / "sizes.json"
    file.write_text(json.dumps({"recipe": recipe.model_dump(mode="json")}))
    return file


@pytest.fixture(scope="module")
def llama_words(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A LLaMA-like tokenizer.model over a few words, smaller than the tiny models' vocabulary."""
    prefix = tmp_path_factory.mktemp("llama") / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS.splitlines() * 20),
        model_prefix=str(prefix),
        vocab_size=310,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    return prefix.with_suffix(".model").read_bytes()


@pytest.fixture
def write_llama(tmp_path: Path, llama_words: bytes) -> Callable[..., Path]:
    """Writes a Vicuna-like folder: weights, tokenizer, and a config with the given fields."""

    def write(weights: Weights, **fields: Any) -> Path:
        folder = tmp_path / "vicuna"
        folder.mkdir()
        torch.save(weights, folder / "pytorch_model.bin")
        (folder / "tokenizer.model").write_bytes(llama_words)
        config = {"model_type": "llama", "num_attention_heads": 4, "rms_norm_eps": 1e-6, **fields}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write


def split(published: Weights, **prefixes: tuple[str, ...]) -> dict[str, Weights]:
    """Tensors by the file that holds them: the first whose prefix fits."""
    parts: dict[str, Weights] = {part: {} for part in prefixes}
    for name, tensor in published.items():
        part = next(p for p, starts in prefixes.items() if name.startswith(starts))
        parts[part][name] = tensor.clone()
    return parts


# --- SAM -----------------------------------------------------------------------------------------


class Sam:
    """Published parts of a tiny SAM, and the options that open them."""

    def __init__(self, tmp_path: Path, write_llama: Callable[..., Path]) -> None:
        self.model = without_key_bias(tiny_model("released"))
        self.parts = split(
            to_published(self.model.state_dict(), NAMES),
            vision=("visual_encoder.",),
            llama=("llm_model.",),
            sam=("attn.", "Qformer.bert.encoder.one_2", "Qformer.bert.encoder.multiple_2"),
            blip=("",),
        )
        vision = {n.removeprefix("visual_encoder."): t for n, t in self.parts["vision"].items()}
        torch.save(vision, tmp_path / "eva.pth")
        llama = {n.removeprefix("llm_model."): t for n, t in self.parts["llama"].items()}
        for part in ("blip", "sam"):
            torch.save({"model": self.parts[part]}, tmp_path / f"{part}.pth")
        self.paths = [
            tmp_path / "eva.pth",
            write_llama(llama),
            tmp_path / "blip.pth",
            tmp_path / "sam.pth",
        ]
        bert = tmp_path / "bert"
        bert.mkdir()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        (bert / "vocab.txt").write_text("\n".join([*special, "what", "is", "it", "?"]) + "\n")
        self.sizes = ("--sizes", sizes_of(self.model, tmp_path))
        self.options = (*self.sizes, "--qformer-tokenizer", bert)


@pytest.fixture
def sam(tmp_path: Path, write_llama: Callable[..., Path]) -> Sam:
    return Sam(tmp_path, write_llama)


def test_sam_there_and_back(sam: Sam, tmp_path: Path) -> None:
    succeed("sam", *sam.paths, *sam.options, "--out", tmp_path / "out")
    loaded, processor = load_model(tmp_path / "out")
    assert_same(dict(loaded.state_dict()), dict(sam.model.state_dict()))
    assert processor.layout == "images_first"
    assert processor.image_token_id == loaded.config.image_token_id == len(processor.tokenizer)
    assert processor.tokenizer.bos_token == "</s>", "as the published code sets it up"

    succeed("sam", tmp_path / "out", "--to", "original", "--out", tmp_path / "own.pth")
    assert_same(read_weights(tmp_path / "own.pth"), sam.parts["sam"])
    assert not list(tmp_path.glob("*.partial"))


def test_what_sam_starts_training_from_has_no_guidance(sam: Sam, tmp_path: Path) -> None:
    succeed("sam", *sam.paths[:3], *sam.options, "--for-training", "--out", tmp_path / "out")
    loaded, _ = load_model(tmp_path / "out")
    assert loaded.config.guidance == "off"
    result = run("sam", tmp_path / "out", "--to", "original", "--out", tmp_path / "own.pth")
    assert_refused(result, "no SAM checkpoint", "6 of 6")


def test_the_papers_guidance_has_no_published_layout(tmp_path: Path) -> None:
    tiny_model("paper").save_pretrained(tmp_path / "ours")
    result = run("sam", tmp_path / "ours", "--to", "original", "--out", tmp_path / "own.pth")
    assert_refused(result, "own.pth", "no place", "w_former")
    assert not (tmp_path / "own.pth").exists()


def test_a_decoder_that_computes_otherwise_is_refused(sam: Sam, tmp_path: Path) -> None:
    """Its tensors have the same shapes."""
    file = sam.paths[1] / "config.json"
    file.write_text(json.dumps({"model_type": "llama", "rms_norm_eps": 1e-5}))
    result = run("sam", *sam.paths, *sam.options, "--out", tmp_path / "out")
    assert_refused(result, "vicuna: rms_norm_eps 1e-05, the sizes say 1e-06")


def test_a_missing_part_or_tokenizer_is_named(sam: Sam, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert_refused(run("sam", *sam.paths, *sam.sizes, *out), "give --qformer-tokenizer DIR")
    assert_refused(run("sam", sam.paths[0], *sam.options, *out), "eva.pth", "--tokenizer DIR")
    assert_refused(run("sam", *sam.paths[:3], *sam.options, *out), "blip.pth: no SAM checkpoint")
    assert_refused(run("sam", *sam.paths[1:], *sam.options, *out), "missing tensors", "vision")
    gone = [tmp_path / "gone.pth", *sam.paths[1:]]
    assert_refused(run("sam", *gone, *sam.options, *out), "gone.pth: no such file")
    full_size = run("sam", *sam.paths, *sam.options[2:], *out)
    assert_refused(full_size, "the sizes say 32")  # heads of Vicuna-7B
    assert not list(tmp_path.glob("out*"))


# --- Cheetah -------------------------------------------------------------------------------------


@pytest.fixture
def cheetah(tmp_path: Path, write_llama: Callable[..., Path]) -> tuple[Any, list[Path], Weights]:
    """A tiny model, its published parts, and the tensors of its own file."""
    model = without_key_bias(tiny_cheetah(image_token_id=320))
    alias = "llama_model.model."
    parts = split(
        cheetah_to_released(model.state_dict()),
        vision=("visual_encoder.",),
        own=("llama_proj", *(f"{alias}{part}" for part in ("q", "llm", "Qformer"))),
        llama=("llama_model.",),
        blip=("",),
    )
    own = {n: t for n, t in parts["own"].items() if "Qformer." not in n}
    torch.save(parts["vision"], tmp_path / "eva.pth")
    torch.save({"model": parts["blip"]}, tmp_path / "blip2.pth")
    torch.save({"model": parts["own"]}, tmp_path / "cheetah.pth")
    llama = write_llama({n.removeprefix("llama_model."): t for n, t in parts["llama"].items()})
    paths = [tmp_path / "eva.pth", tmp_path / "blip2.pth", llama, tmp_path / "cheetah.pth"]
    return model, paths, own


@pytest.mark.parametrize(("variant", "template"), [("vicuna", "vicuna_v0"), ("llama2", "llama2")])
def test_cheetah_there_and_back(cheetah, tmp_path: Path, variant: str, template: str) -> None:
    model, paths, own = cheetah
    options = ("--variant", variant, "--sizes", sizes_of(model, tmp_path))
    succeed("cheetah", *paths, *options, "--out", tmp_path / "out")
    loaded, processor = load_model(tmp_path / "out")
    assert_same(dict(loaded.state_dict()), dict(model.state_dict()))
    assert (processor.template, processor.tokens_per_image) == (template, TINY_QUERIES)

    succeed("cheetah", tmp_path / "out", "--to", "original", "--out", tmp_path / "own.pth")
    assert_same(read_weights(tmp_path / "own.pth"), own)


def test_what_cheetah_starts_training_from_has_a_fresh_vpgc(cheetah, tmp_path: Path) -> None:
    model, paths, own = cheetah
    projection = {n: t for n, t in own.items() if n.startswith("llama_proj")}
    torch.save(projection, tmp_path / "projection.pth")
    succeed(
        *("cheetah", *paths[:3], tmp_path / "projection.pth", "--for-training"),
        *("--sizes", sizes_of(model, tmp_path), "--out", tmp_path / "out"),
    )
    loaded, processor = load_model(tmp_path / "out")
    assert not loaded.vpgc.residual_projection.weight.any()
    assert processor.template == "vicuna_v0_training"


def test_another_methods_sizes_are_refused(cheetah, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    result = run("cheetah", *cheetah[1], "--sizes", "sam_vicuna7b", *out)
    assert_refused(result, "--sizes sam_vicuna7b", "'polyptych_sam'", "'polyptych_cheetah'")
    assert_refused(run("cheetah", *cheetah[1], "--variant", "gpt", *out), "'gpt'", "llama2")
    assert_refused(run("cheetah", *cheetah[1], "--sizes", "tiny", *out), "no recipe")


# --- CaMML ---------------------------------------------------------------------------------------


class Camml:
    """What the published code would have trained at tiny size, with CLIP in its own folder."""

    def __init__(self, tmp_path: Path, llama_words: bytes) -> None:
        width = {**BERT_SIZES, "hidden_size": 24, "num_hidden_layers": 2}
        self.model = tiny_camml(perceiver_config=width, image_token_id=320, context_token_id=321)
        published = camml_conversion.to_released(self.model.state_dict())
        tower = "model.vision_tower.vision_tower."
        self.own = {n: t for n, t in published.items() if not n.startswith(tower)}
        self.clip = tmp_path / "clip"
        self.clip.mkdir()
        vision = {n.removeprefix(tower): t for n, t in published.items() if n.startswith(tower)}
        save_file({n: t.contiguous() for n, t in vision.items()}, self.clip / "model.safetensors")
        self.model.config.vision_config.save_pretrained(self.clip)
        tiny_camml_processor().image_processor.save_pretrained(self.clip)
        self.folder = tmp_path / "camml_7b"
        self.folder.mkdir()
        torch.save(self.own, self.folder / "pytorch_model.bin")
        (self.folder / "tokenizer.model").write_bytes(llama_words)
        special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        (self.folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "LlamaTokenizer", **special})
        )
        fields = {
            **self.model.config.text_config.to_dict(),
            "model_type": "llava",
            "mm_vision_tower": "clip",
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2,
            "image_aspect_ratio": "pad",
            "perceiver_querys": TINY_QUERIES,
            "perceiver_layers": 2,
            "perceiver_hidden_size": 24,
        }
        (self.folder / "config.json").write_text(json.dumps(fields))


@pytest.fixture
def camml(tmp_path: Path, llama_words: bytes) -> Camml:
    return Camml(tmp_path, llama_words)


@pytest.mark.parametrize("with_sizes", [False, True])
def test_camml_there_and_back(camml: Camml, tmp_path: Path, with_sizes: bool) -> None:
    sizes = ("--sizes", sizes_of(camml.model, tmp_path)) if with_sizes else ()
    succeed("camml", camml.clip, camml.folder, *sizes, "--out", tmp_path / "out")
    loaded, processor = load_model(tmp_path / "out")
    assert_same(dict(loaded.state_dict()), dict(camml.model.state_dict()))
    assert loaded.config.behavior == "released"
    assert processor.context_template == "released_instruction"
    assert processor.context_tokens == 2 * TINY_QUERIES
    assert processor.context_token_id == loaded.config.context_token_id
    assert processor.image_processor.do_pad

    back = tmp_path / "pytorch_model.bin"
    succeed("camml", tmp_path / "out", "--to", "original", "--out", back)
    written = read_weights(back)
    assert_same({name: written[name] for name in camml.own}, camml.own)


def test_camml_without_its_tower_or_template_is_refused(camml: Camml, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert_refused(run("camml", camml.folder, *out), "mm_vision_tower 'clip'")
    words = run("camml", camml.clip, camml.folder, "--context-template", "poem", *out)
    assert_refused(words, "--context-template 'poem'", "released_science")
    assert_refused(run("camml", camml.folder, camml.clip, *out), "no CaMML config")
    text_only = run("camml", camml.folder, camml.folder, *out)
    assert_refused(text_only, "camml_7b")


# --- LLaVA ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_llava_goes_around_all_layouts(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny_llava(image_token_id=320).to(dtype)
    write_original(model, tiny_llava_processor(image_token_id=320), tmp_path / "llava-tiny")
    before = read_weights(tmp_path / "llava-tiny")
    source = tmp_path / "llava-tiny"
    for step, to in enumerate(("polyptych", "llava-hf", "polyptych", "original")):
        out = tmp_path / f"{step}-{to}"
        succeed("llava", source, "--to", to, "--out", out)
        source = out
    succeed("llava", tmp_path / "0-polyptych", "--to", "original", "--out", tmp_path / "directly")
    for folder in (source, tmp_path / "directly"):
        assert_same(read_weights(folder), before)
    ours, processor = load_model(tmp_path / "0-polyptych", dtype=dtype)
    assert_same(dict(ours.state_dict()), dict(model.state_dict()))
    assert processor.image_processor.do_pad


def test_llava_refusals_are_one_line(tmp_path: Path) -> None:
    model, processor = tiny_llava(), tiny_llava_processor()
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    tiny_model().save_pretrained(tmp_path / "sam")
    out = ("--out", tmp_path / "out")
    assert_refused(run("llava", tmp_path / "ours", *out), "a folder of ours")
    assert_refused(run("llava", tmp_path / "sam", "--to", "original", *out), "'polyptych_sam'")
    assert_refused(run("llava", tmp_path / "ours", "--to", "gguf", *out), "'gguf'", "llava-hf")
    (tmp_path / "empty").mkdir()
    assert_refused(run("llava", tmp_path / "empty", *out), "empty: no model here")
    there = run("llava", tmp_path / "ours", "--to", "original", "--out", tmp_path / "sam")
    assert_refused(there, "sam: exists already")
    assert not list(tmp_path.glob("out*"))


# --- all -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sam", "cheetah", "camml"])
def test_the_way_back_takes_one_folder_of_that_model(method: str, tmp_path: Path) -> None:
    tiny_llava().save_pretrained(tmp_path / "llava")
    tiny_processor().save_pretrained(tmp_path / "llava")
    back = ("--to", "original", "--out", tmp_path / "own.pth")
    two = run(method, tmp_path / "llava", tmp_path / "llava", *back)
    assert_refused(two, "takes 1 folder of ours; got 2")
    assert_refused(run(method, tmp_path / "llava", *back), "'polyptych_llava'", method)
    assert_refused(run(method, tmp_path / "none", *back), "none: no model here")
    assert_refused(run(method, "x", "--to", "llava-hf", *back[2:]), "--to 'llava-hf'")
    assert_refused(run(method, "x", *back[:2], "--out", tmp_path / "llava"), "exists already")
    assert not (tmp_path / "own.pth").exists()
