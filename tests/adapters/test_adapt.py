"""What is refused, how images are numbered, how tokens are pooled; on one or two families."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from family_bases import MIXED, adapted, base_model, example, logits_of, processor_of, theirs
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig

from polyptych.adapters.adapt import adapt, load_base, methods_by_name
from polyptych.adapters.attention import fitting_width
from polyptych.adapters.camml import Camml
from polyptych.adapters.families import FAMILIES
from polyptych.adapters.lora import lora_config
from polyptych.adapters.method import BaseSizes
from polyptych.adapters.numbering import FlatPrefill, find_prompt_end, number_images
from polyptych.adapters.sam import CrossImageGuidance, Sam, pool
from polyptych.adapters.vpgc import VpgC
from polyptych.connectors.zero_linear import ZeroLinear
from polyptych.errors import PolyptychError

# Numbering. 9 is a visual token, 7 the marker, everything else words.


@pytest.mark.parametrize(
    ("rows", "entries", "grouping", "counts", "lengths"),
    [
        # Two images side by side are one run, but two entries.
        ([[1, 9, 9, 9, 9, 2]], [2, 2], "entry", [2], [2, 2]),
        ([[1, 9, 9, 9, 9, 2]], [2, 2], "run", [1], [4]),
        # Two tiles of 2 tokens in one run, then an image of one tile; a row without images.
        ([[9, 9, 9, 9, 1, 9, 9], [1, 1, 1, 1, 1, 1, 1]], [2, 2, 2], "run", [2, 0], [4, 2]),
        # Pan and scan: each crop is a run, and counts as an image.
        ([[1, 9, 9, 1, 9, 9, 1]], [2, 2], "run", [2], [2, 2]),
        # Tiles in runs of their own; the one behind the marker is the last of its image.
        ([[9, 9, 1, 9, 9, 7, 9, 9, 1, 7, 9, 9]], [8], "marker", [2], [6, 2]),
        # Ragged, over two rows.
        ([[1, 9, 9, 9, 1], [9, 1, 9, 9, 1]], [3, 1, 2], "entry", [1, 2], [3, 1, 2]),
        ([[1, 2]], [], "run", [0], []),
    ],
)
def test_images_are_numbered_as_counted_by_hand(
    rows: Any, entries: Any, grouping: Any, counts: Any, lengths: Any
) -> None:
    ids = torch.tensor(rows)
    found = number_images(ids, ids == 9, entries, grouping, 7)
    assert [part.tolist() for part in found] == [counts, lengths]


def test_numbers_that_disagree_are_named() -> None:
    ids = torch.tensor([[1, 9, 9, 2], [9, 9, 1, 1]])
    with pytest.raises(
        PolyptychError, match=r"4 image placeholders .* 5 visual tokens of 2 images"
    ):
        number_images(ids, ids == 9, [2, 3], "entry")
    with pytest.raises(PolyptychError, match=r"image 1 begins in row 0 .* ends in row 1"):
        number_images(ids, ids == 9, [1, 2, 1], "entry")
    with pytest.raises(PolyptychError, match=r"row 1 .* no token 7 before the last of its 1 runs"):
        number_images(
            torch.tensor([[7, 9], [1, 9]]), torch.tensor([[0, 1], [0, 1]]).bool(), [2], "marker", 7
        )


def test_the_last_end_of_a_prompt_counts() -> None:
    ids = torch.tensor([[5, 6, 1, 5, 6, 2], [1, 2, 3, 4, 5, 5]])
    with_images = torch.tensor([True, False])
    assert find_prompt_end(ids, torch.tensor([5, 6]), with_images).tolist() == [4, 0]
    with pytest.raises(PolyptychError, match=r"row 1 .* no end of a prompt"):
        find_prompt_end(ids, torch.tensor([5, 6]), ~with_images)


# SAM's pooling and its cost.


def test_pooling_keeps_small_images_whole_and_averages_neighbors() -> None:
    flat = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [7.0], [8.0]])
    score = torch.tensor([0.0, 0, 0, 0, 0, torch.tensor(3.0).log(), 0, 0])
    pooled, mean, filled = pool(flat, score, torch.tensor([2, 6]), 3)
    assert pooled[0, :, 0].tolist() == [1, 2, 0] and filled[0].tolist() == [True, True, False]
    # Neighbors in twos: (3, 4), (5, 6) with 6 weighing three times as much, (7, 8).
    torch.testing.assert_close(pooled[1, :, 0], torch.tensor([3.5, 5.75, 7.5]))
    torch.testing.assert_close(mean[1], torch.tensor([0.0, torch.tensor(2.0).log(), 0.0]))
    assert mean[0, 2] == 0


def test_guidance_of_an_image_depends_on_others_of_its_example_alone() -> None:
    torch.manual_seed(0)
    guidance = CrossImageGuidance(16, 32, pooled_tokens=4, layers=2)
    nn.init.normal_(guidance.w_to_query.weight)
    lengths, counts = torch.tensor([5, 9, 3, 6, 2]), torch.tensor([2, 1, 2])
    tokens = torch.randn(25, 16, requires_grad=True)
    mask = torch.zeros(3, 25, dtype=torch.bool)  # guidance does not read it
    image = torch.arange(5).repeat_interleave(lengths)
    residual = guidance(FlatPrefill(mask, counts, lengths, tokens))
    assert not residual[image == 2].any()
    for of, seen in ((0, {0, 1}), (1, {0, 1}), (3, {3, 4}), (4, {3, 4})):
        (gradient,) = torch.autograd.grad(residual[image == of].sum(), tokens, retain_graph=True)
        assert set(image[gradient.abs().sum(1) > 0].tolist()) == seen


def test_memory_of_guidance_is_linear_in_images() -> None:
    """Floats kept for backward at 8 and 16 images of 288 tokens: twice, not four times."""
    guidance = CrossImageGuidance(16, 32, pooled_tokens=8, layers=1)

    def kept(images: int) -> int:
        total = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        lengths = torch.full((images,), 288)
        tokens = torch.randn(288 * images, 16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            guidance(FlatPrefill(torch.zeros(1, 1).bool(), torch.tensor([images]), lengths, tokens))
        return total

    assert kept(16) < 2.2 * kept(8)


# What a user may get wrong.


def test_unknown_bases_are_refused_with_what_to_add(tmp_path: Path) -> None:
    LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(PolyptychError, match=r"type 'llama' is not known.*one Family\("):
        adapt(tmp_path, [Sam()])
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "internvl_chat", "auto_map": {"AutoModel": "modeling.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        PolyptychError, match=r"'internvl_chat' that brings code .*trust_remote_code"
    ):
        adapt(tmp_path, [Sam()])


def test_a_base_without_weights_is_refused(tmp_path: Path) -> None:
    base_model("llava").config.save_pretrained(tmp_path)
    with pytest.raises(PolyptychError, match="weights cannot be read"):
        load_base(str(tmp_path))
    with pytest.raises(PolyptychError, match="no model here, nor on the hub"):
        load_base(str(tmp_path / "nothing"))


def test_methods_that_cannot_be_together_are_refused() -> None:
    base, processor = base_model("llava"), processor_of("llava")
    with pytest.raises(PolyptychError, match="2 methods are called 'sam'"):
        adapt(base, [Sam(), Sam(width=64)], processor=processor)

    @dataclass(frozen=True)
    class Other(Camml):
        name: ClassVar[str] = "other"

    with pytest.raises(
        PolyptychError, match="2 methods want the context's placeholder: camml, other"
    ):
        adapt(base, [Camml(), Other()], processor=processor)
    adapt(base, [Sam()], processor=processor)
    with pytest.raises(PolyptychError, match="has the methods sam already"):
        adapt(base, [VpgC()], processor=processor)
    with pytest.raises(PolyptychError, match="no method 'simm'; known: sam, camml, vpgc"):
        methods_by_name("sam,simm")


def test_sizes_come_from_the_base_and_wrong_ones_are_refused() -> None:
    sizes = BaseSizes(hidden_size=3584, num_layers=28, default_layer=14, first_free_layer=3)
    assert [m.fitted(sizes).width for m in (Sam(), VpgC(), Camml())] == [512] * 3
    assert VpgC().fitted(sizes).layer == 14 and fitting_width(576) == 128
    for method, problem in (
        (VpgC(layer=2), "layer 2, but the base itself adds visual features before layer 3"),
        (VpgC(layer=28), "injection_layer 28 is not between 1 and 27"),
        (Sam(width=100), "sam: width 100 is no multiple of 32"),
        (Sam(pooled_tokens=0), "0 pooled tokens"),
    ):
        with pytest.raises(PolyptychError, match=problem):
            method.fitted(sizes)


def test_files_are_loaded_strictly(tmp_path: Path) -> None:
    model, processor = adapted("llava", Sam(), drawn=0.2)
    base = base_model("llava")
    base.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path)
    with pytest.raises(PolyptychError, match="an adapter without its base, which had no name"):
        adapt(tmp_path)
    record = json.loads((tmp_path / "polyptych_adapter.json").read_text())

    def say(**changes: Any) -> None:
        told = {**record, "base": {**record["base"], "name": str(tmp_path / "base"), **changes}}
        (tmp_path / "polyptych_adapter.json").write_text(json.dumps(told))

    again, _ = adapt(base, adapter=tmp_path, processor=processor.processor)
    batch = processor.collate(MIXED[:1], training=True)
    assert torch.equal(logits_of(model, batch), logits_of(again, batch))
    other = base_model("llava")
    torch.nn.init.normal_(other.get_parameter("model.language_model.norm.weight"))
    with pytest.raises(PolyptychError, match=r"another base: its weights is \w+, this base's \w+"):
        adapt(other, adapter=tmp_path)
    say(hidden_size=64)
    with pytest.raises(PolyptychError, match="its hidden_size is 64, this base's 32"):
        adapt(tmp_path)
    say()
    with pytest.raises(PolyptychError, match="has the methods sam; 1 more were named"):
        adapt(tmp_path, [VpgC()])
    weights = tmp_path / "polyptych_adapter.safetensors"
    whole = load_file(weights)
    name = min(whole)
    save_file({n: w for n, w in whole.items() if n != name}, weights)
    with pytest.raises(PolyptychError, match=rf"1 of {len(whole)} weights are missing: {name}"):
        adapt(tmp_path)
    save_file({**whole, "more": torch.zeros(1)}, weights)
    with pytest.raises(PolyptychError, match="weights are extra: more"):
        adapt(tmp_path)
    save_file({**whole, name: torch.zeros(3)}, weights)
    with pytest.raises(PolyptychError, match=r"is \[3\], the base needs"):
        adapt(tmp_path)
    weights.write_bytes(b"half")
    with pytest.raises(PolyptychError, match="weights cannot be read"):
        adapt(tmp_path)


def test_examples_that_do_not_fit_are_named() -> None:
    _, processor = adapted("llava", Sam())
    one = example("e", (1, 2))
    with pytest.raises(PolyptychError, match="example e: 2 image placeholders for 1 images"):
        processor.collate([replace(one, images=one.images[:1])], training=True)
    with pytest.raises(PolyptychError, match="example e: no answer to learn from"):
        processor.collate([replace(one, messages=one.messages[:1])], training=True)
    processor.settings = replace(processor.settings, max_length=40)
    with pytest.raises(PolyptychError, match=r"example e: \d+ tokens, 32 of them of images, .* 40"):
        processor.collate([one], training=True)


def test_context_without_shots_and_shots_without_context_are_told_apart() -> None:
    model, processor = adapted("qwen2_vl", Camml(num_query_tokens=2, layers=1))
    asked = replace(MIXED[0], shots=(example("s", (7,)),))
    batch = processor.collate([asked], training=True)
    with pytest.raises(PolyptychError, match="4 context placeholders, but 0 shots"):
        model(**{n: v for n, v in batch.items() if not n.startswith("shot_")})
    plain = processor.collate([MIXED[0]], training=True)
    shots = {n: v for n, v in batch.items() if n.startswith("shot_")}
    with pytest.raises(PolyptychError, match=r"\[0\] context placeholders .* \[4\] context tokens"):
        model(**plain, **shots)
    generated = model.generate(
        **processor.collate([asked, MIXED[1]], training=False),
        max_new_tokens=2,
        num_beams=2,
        do_sample=False,
    )
    assert not (generated[:, -2:] == model.seams.context_token_id).any()


# Precision, LoRA in the vision tower.


def test_float32_methods_ride_on_a_bfloat16_base() -> None:
    base = base_model("llava").to(torch.bfloat16)
    processor = processor_of("llava")
    model, rows = adapt(base, [Sam(), VpgC()], processor=processor)
    batch = rows.collate(MIXED, training=True)
    model.train()
    model(**batch).loss.backward()
    assert {p.dtype for p in model.seams.modules.parameters()} == {torch.float32}
    assert logits_of(model, batch).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        again, _ = adapted("llava", Sam(), VpgC(), drawn=0.2)
        assert torch.isfinite(logits_of(again, batch)).all()
    assert theirs(batch).keys() < batch.keys()


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "idefics3", "internvl"])
def test_lora_enters_the_vision_tower_only_when_asked(kind: str) -> None:
    from peft import get_peft_model

    for asked in (False, True):
        model, _ = adapted(kind, Sam())
        tuned = get_peft_model(model, lora_config(model, rank=2, vision=asked))
        names = [n for n, _ in tuned.named_parameters() if "lora_" in n]
        assert any("visi" in n or "visual" in n for n in names) == asked
        assert not [n for n in names if "polyptych_methods" in n]


# docs/extending.md: a method on one page.


class _Offset(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.out = ZeroLinear(hidden_size, hidden_size)

    def forward(self, prefill: FlatPrefill) -> torch.Tensor:
        return self.out(prefill.visual_tokens)


@dataclass(frozen=True)
class Offset:
    name: ClassVar[str] = "offset"
    seam: ClassVar[str] = "guidance"

    def fitted(self, base: BaseSizes) -> Offset:
        return self

    def build(self, base: BaseSizes) -> nn.Module:
        return _Offset(base.hidden_size)


def test_a_method_of_ones_own_stands_beside_the_others() -> None:
    model, processor = adapted("llava", VpgC(), Offset(), Sam())
    assert [*model.methods] == ["offset", "sam", "vpgc"]
    batch = processor.collate(MIXED[:2], training=True)
    before = logits_of(model, batch)
    assert torch.equal(before, logits_of(base_model("llava"), theirs(batch)))
    nn.init.normal_(model.seams.modules["offset"].out.weight)
    assert not torch.equal(before, logits_of(model, batch))


def test_every_family_names_a_processor_of_transformers() -> None:
    import transformers

    assert all(hasattr(transformers, family.processor) for family in FAMILIES.values())
