"""``polyptych convert ...``: published checkpoints to folders of ours, and back.

One form for all: parts first (base before what lies over it), ``--out``, ``--to`` for the layout,
``--sizes`` for what the files do not say. Nothing is written before all of it is understood.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyptych.cli.common import check_choice, command_group, example, hide_bars
from polyptych.cli.conversion_parts import (
    check_fit,
    folder_with,
    is_way_back,
    open_llava,
    our_weights,
    sizes_of,
)

SAM_EXAMPLE = (
    "polyptych convert sam eva_vit_g.pth vicuna-7b-v1.1 instruct_blip_vicuna7b_trimmed.pth sam.pth "
    "--qformer-tokenizer bert-base-uncased --out models/sam"
)
CHEETAH_EXAMPLE = (
    "polyptych convert cheetah eva_vit_g.pth blip2_pretrained_flant5xxl.pth vicuna-7b-v0 "
    "cheetah_vicuna.pth --out models/cheetah"
)
CAMML_EXAMPLE = "polyptych convert camml clip-vit-large-patch14-336 camml_7b --out models/camml"
LLAVA_EXAMPLE = "polyptych convert llava llava-hf/llava-1.5-7b-hf --to original --out llava-v1.5-7b"

CHEETAH_SIZES = {"vicuna": "cheetah_vicuna7b", "llama2": "cheetah_llama2_7b"}
"""Published model -> the recipe with its sizes."""

commands = command_group(
    "Turn published checkpoints into folders of ours, and back.", LLAVA_EXAMPLE
)

PartsArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="PART", help="Files and folders, base first; --to original: one folder of ours."
    ),
]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", help="What to write; nothing is overwritten.")
]
ToOption = Annotated[
    str, typer.Option(help="polyptych (a folder of ours), or original (a file of the release).")
]
TokenizerOption = Annotated[
    Path | None, typer.Option(help="Folder of the LLM's tokenizer; default: the first part's.")
]
TrainingOption = Annotated[
    bool,
    typer.Option(
        "--for-training", help="Make what training starts from: the method's own layers untrained."
    ),
]


@commands.command(epilog=example(SAM_EXAMPLE))
def sam(
    parts: PartsArgument,
    out: OutOption,
    to: ToOption = "polyptych",
    sizes: Annotated[str, typer.Option(help="Recipe with the sizes.")] = "sam_vicuna7b",
    tokenizer: TokenizerOption = None,
    qformer_tokenizer: Annotated[
        Path | None,
        typer.Option(help="Folder of BERT's tokenizer; default: qformer_tokenizer/ in a part."),
    ] = None,
    for_training: TrainingOption = False,
) -> None:
    """Assemble SAM from its published parts.

    These are EVA-CLIP's file, a Vicuna folder, InstructBLIP's file and SAM's own; a Hugging Face
    folder of InstructBLIP may stand for the first three. Back goes SAM's own file.
    """
    from polyptych.methods.sam import conversion, released
    from polyptych.methods.sam.model import PolyptychSamConfig

    if is_way_back(to, parts, out):
        conversion.write_released(our_weights(parts[0], PolyptychSamConfig.model_type), out)
    else:
        config = sizes_of(sizes, PolyptychSamConfig)
        config.guidance = "off" if for_training else "released"
        words = folder_with("tokenizer", parts, tokenizer)
        folders = [part / "qformer_tokenizer" for part in parts]
        questions = folder_with("qformer-tokenizer", folders, qformer_tokenizer)
        processor = released.released_processor(
            released.released_language_tokenizer(words),
            released.released_qformer_tokenizer(questions),
            image_size=config.vision_config.image_size,
            tokens_per_image=config.num_query_tokens,
        )
        config.image_token_id = processor.image_token_id
        check_fit(out, parts, config, processor)
        conversion.convert_checkpoint(out, parts=parts, config=config, processor=processor)
    typer.echo(f"written to {out}")


@commands.command(epilog=example(CHEETAH_EXAMPLE))
def cheetah(
    parts: PartsArgument,
    out: OutOption,
    to: ToOption = "polyptych",
    variant: Annotated[
        str, typer.Option(help="Published model, which decides prompts: vicuna or llama2.")
    ] = "vicuna",
    sizes: Annotated[
        str | None, typer.Option(help="Recipe with the sizes; default: the variant's.")
    ] = None,
    tokenizer: TokenizerOption = None,
    for_training: TrainingOption = False,
) -> None:
    """Assemble Cheetah from its published parts.

    These are EVA-CLIP's file, BLIP-2's file, a LLaMA folder and Cheetah's own; what training starts
    from needs a projection (llama_proj) only. Back goes Cheetah's own file.
    """
    from polyptych.methods.cheetah import conversion, released
    from polyptych.methods.cheetah.model import PolyptychCheetahConfig

    check_choice("--variant", variant, CHEETAH_SIZES)
    if is_way_back(to, parts, out):
        conversion.write_released(our_weights(parts[0], PolyptychCheetahConfig.model_type), out)
    else:
        config = sizes_of(sizes or CHEETAH_SIZES[variant], PolyptychCheetahConfig)
        processor = released.released_processor(
            released.released_tokenizer(folder_with("tokenizer", parts, tokenizer), variant),
            variant,
            image_token_id=config.image_token_id,
            image_size=config.vision_config.image_size,
            tokens_per_image=config.num_query_tokens,
            training=for_training,
        )
        check_fit(out, parts, config, processor)
        conversion.convert_checkpoint(
            out, parts=parts, config=config, processor=processor, fresh_vpgc=for_training
        )
    typer.echo(f"written to {out}")


@commands.command(epilog=example(CAMML_EXAMPLE))
def camml(
    parts: PartsArgument,
    out: OutOption,
    to: ToOption = "polyptych",
    sizes: Annotated[
        str | None,
        typer.Option(help="Recipe with the sizes; default: the config.json of the last part."),
    ] = None,
    context_template: Annotated[
        str, typer.Option(help="How a question says that it has shots; or released_science.")
    ] = "released_instruction",
) -> None:
    """Open a folder that CaMML's own code has trained.

    CLIP's folder comes before it, but where the weights hold it. Back goes a pytorch_model.bin.
    """
    from polyptych.data.conversation import CONTEXT_TEMPLATES
    from polyptych.methods.camml import conversion
    from polyptych.methods.camml.model import PolyptychCammlConfig
    from polyptych.models.llava_conversion import read_processor, vision_config_of

    check_choice("--context-template", context_template, CONTEXT_TEMPLATES)
    if is_way_back(to, parts, out):
        conversion.write_released(our_weights(parts[0], PolyptychCammlConfig.model_type), out)
    else:
        tower = parts[0] if len(parts) > 1 else None
        fields = conversion.read_fields(parts[-1])
        if sizes is None:
            vision = None if tower is None else vision_config_of(tower)
            config = conversion.config_from_released(fields, vision)
        else:
            config = sizes_of(sizes, PolyptychCammlConfig)
            config.behavior = "released"
        processor = read_processor(parts[-1], config, vision_tower=tower)
        processor.context_tokens = config.context_tokens
        processor.context_token_id = config.context_token_id
        processor.context_template = context_template
        check_fit(out, parts, config, processor)
        conversion.convert_checkpoint(out, parts=parts, config=config, processor=processor)
    typer.echo(f"written to {out}")


@commands.command(epilog=example(LLAVA_EXAMPLE))
def llava(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Folder of any of the three layouts, or hub name."),
    ],
    out: OutOption,
    to: Annotated[
        str, typer.Option(help="Layout: polyptych, llava-hf or original (LLaVA's own code).")
    ] = "polyptych",
    vision_tower: Annotated[
        Path | None,
        typer.Option(help="Layout original: CLIP's folder, where the weights leave it out."),
    ] = None,
    pad: Annotated[
        bool,
        typer.Option("--pad", help="Pad pictures to squares, as LLaVA-1.5 was trained, anyway."),
    ] = False,
) -> None:
    """Turn the layouts of LLaVA into each other.

    They are that of transformers, that of LLaVA's own code, and ours.
    """
    from polyptych.models import llava_export
    from polyptych.models.blip2_conversion import refuse_existing, write_model_folder

    check_choice("--to", to, ("polyptych", "llava-hf", "original"))
    refuse_existing(out)
    hide_bars()
    model, processor = open_llava(source, to, vision_tower, pad)
    if to == "llava-hf":
        llava_export.write_llava_hf(model, processor, out)
    elif to == "original":
        llava_export.write_original(model, processor, out)
    else:
        write_model_folder(out, model.state_dict(), model.config, type(model), processor)
    typer.echo(f"written to {out}")
