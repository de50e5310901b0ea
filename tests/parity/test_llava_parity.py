"""The LLaVA base inside the published CaMML: vision tower, projector, splice, decoder, loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import CLIPVisionConfig

from polyptych.language.splicing import embed_text, splice_visual_tokens
from polyptych.models.llava import PolyptychLlavaForConditionalGeneration
from polyptych.models.llava_conversion import IGNORED, RULES, config_from_original
from polyptych.models.weights import overlay, rename

CAMML = r"(?:query_tokens_.+|.*_perceiver[._].*|context_proj_.+)"
"""What CaMML adds to the base."""


@pytest.fixture(params=("a", "b"))
def golden(request, shared_dir: Path):
    folder = shared_dir / "golden" / "camml" / request.param
    fields = json.loads((folder / "config.json").read_text("utf-8"))
    config = config_from_original(
        {
            **fields["llm"],
            "model_type": "llava_llama",
            "mm_projector_type": {"linear": "linear"}.get(fields["projector"], "mlp2x_gelu"),
            "mm_vision_select_layer": fields["vision_select_layer"],
            "mm_vision_select_feature": fields["vision_select_feature"],
        },
        CLIPVisionConfig(**fields["clip"]),
    )
    model = PolyptychLlavaForConditionalGeneration(config).eval()
    weights = rename(load_file(folder / "state_dict.safetensors"), RULES, (*IGNORED, CAMML))
    model.load_state_dict(overlay([weights], model.state_dict()))
    inputs = load_file(folder / "inputs.safetensors")
    return model, inputs, load_file(folder / "outputs.safetensors")


@pytest.mark.shared_data
def test_images_to_visual_tokens(golden) -> None:
    model, inputs, outputs = golden
    images = inputs["images"]
    record: dict[str, torch.Tensor] = {}
    tokens = model.encode_images(
        images, image_counts=torch.ones(len(images), dtype=torch.long), record=record
    ).visual_tokens
    assert model.config.tokens_per_image == record["image_features"].shape[1]
    assert_close(record["image_features"], outputs["stage.vision_tower.call1"], atol=1e-5, rtol=0)
    expected = outputs["stage.mm_projector.call0"].flatten(0, 1)
    assert_close(tokens, expected, atol=1e-5, rtol=0)


@pytest.mark.shared_data
@pytest.mark.parametrize("batch", ("img_txt", "img_img"))
def test_embedded_rows_to_logits_and_loss(golden, batch: str) -> None:
    """From rows in which the published code has put context and image."""
    model, _, outputs = golden
    mask = outputs[f"{batch}.spliced_attention_mask"]
    logits = model.language_model(
        inputs_embeds=outputs[f"{batch}.inputs_embeds"], attention_mask=mask
    ).logits
    assert_close(logits[mask == 1], outputs[f"{batch}.logits"][mask == 1], atol=1e-5, rtol=0)
    loss = model.loss_function(
        logits=logits,
        labels=outputs[f"{batch}.spliced_labels"],
        vocab_size=model.config.text_config.vocab_size,
    )
    assert_close(loss[None], outputs[f"{batch}.loss"], atol=1e-5, rtol=0)


@pytest.mark.shared_data
def test_visual_tokens_and_context_spliced_by_placeholder_give_the_published_rows(golden) -> None:
    """Context and image as two runs of visual tokens: one reserved id per token."""
    model, inputs, outputs = golden
    rows = outputs["img_img.inputs_embeds"]
    visual = outputs["stage.mm_projector.call0"]
    context = torch.cat(
        [outputs["stage.context_proj_vision"], outputs["stage.context_proj_text"]], dim=1
    )
    place = torch.tensor([model.config.image_token_id])
    for row, ids in enumerate(inputs["img_img.input_ids"]):
        blocks = (context[row], visual[row])
        first, second = (ids == -200).nonzero().flatten().tolist()
        parts = (ids[:first], ids[first + 1 : second], ids[second + 1 :])
        runs = [place.repeat(len(block)) for block in blocks]
        reserved = torch.cat([parts[0], runs[0], parts[1], runs[1], parts[2]])[None]
        mask = reserved == place
        embedded = splice_visual_tokens(
            embed_text(model.get_input_embeddings(), reserved, mask),
            mask,
            torch.cat(blocks),
            mask.sum(1),
        )
        assert_close(embedded[0], rows[row, : embedded.shape[1]], atol=1e-6, rtol=0)
