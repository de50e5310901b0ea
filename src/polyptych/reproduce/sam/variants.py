"""The base of the SAM study and the variants that start from it.

All variants start as the *same function*: the guidance linears are zero, and the variants with
fewer parameters get wider feed-forward layers whose new output weights are zero. So a difference
at the end is a difference of what could be learned, not of size or luck at the start.
"""

from __future__ import annotations

from pathlib import Path

import torch

from polyptych.methods.sam.model import PolyptychSamConfig, PolyptychSamForConditionalGeneration
from polyptych.models.processor import PolyptychProcessor
from polyptych.reproduce.small_models import load_encoder, small_config

VARIANTS = ("independent", "released", "paper")
GUIDANCE = {"independent": "off", "released": "released", "paper": "paper"}


def build_base(
    encoder: Path, processor: PolyptychProcessor, *, tokens: int, width: int | None, seed: int
) -> PolyptychSamForConditionalGeneration:
    """The model before alignment; ``tokens`` per picture with ``width`` numbers each."""
    torch.manual_seed(seed)
    config = PolyptychSamConfig(
        **small_config(encoder, processor),
        guidance="off",
        num_query_tokens=tokens,
        visual_token_width=width,
    )
    model = PolyptychSamForConditionalGeneration(config)
    load_encoder(model, encoder)
    return model


def build_variant(
    base: PolyptychSamForConditionalGeneration, variant: str, seed: int
) -> PolyptychSamForConditionalGeneration:
    """A variant that computes exactly what the base computes, with as many parameters as any."""
    largest = connector_size(_with_guidance(base, "paper", 0, seed))
    guidance = GUIDANCE[variant]
    model = _with_guidance(base, guidance, 0, seed)
    qformer = base.config.qformer_config
    per_unit = qformer.num_hidden_layers * (2 * qformer.hidden_size + 1)
    extra = -(-(largest - connector_size(model)) // per_unit)
    return _with_guidance(base, guidance, extra, seed) if extra else model


def connector_size(model: PolyptychSamForConditionalGeneration) -> int:
    """Parameters of the connector, guidance included."""
    return sum(p.numel() for p in model.connector.parameters())


def _with_guidance(
    base: PolyptychSamForConditionalGeneration, guidance: str, extra: int, seed: int
) -> PolyptychSamForConditionalGeneration:
    """The base's weights under another form of guidance, ``extra`` units wider."""
    torch.manual_seed(seed)
    fields = base.config.to_dict()
    fields.pop("model_type")
    fields["guidance"] = guidance
    fields["qformer_config"]["intermediate_size"] += extra
    model = PolyptychSamForConditionalGeneration(PolyptychSamConfig(**fields))
    own, theirs = model.state_dict(), base.state_dict()
    for name, value in theirs.items():
        if own[name].shape != value.shape:
            theirs = {**theirs, name: _widened(own[name], value, name)}
    missing, unexpected = model.load_state_dict(theirs, strict=False)
    assert not unexpected and all("guidance" in name for name in missing)
    model.copy_qformer_to_w_former()
    return model


@torch.no_grad()
def _widened(random: torch.Tensor, value: torch.Tensor, name: str) -> torch.Tensor:
    """Old weights, then new hidden units: random going in, zero coming out."""
    result = torch.zeros_like(random) if ".down." in name else random.clone()
    result[tuple(slice(0, size) for size in value.shape)] = value
    return result
