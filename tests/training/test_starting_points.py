"""Where training starts: from nothing, from a base that becomes a method, from parts of others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from training_runs import PROCESSOR, small_model, small_recipe

from polyptych.data.collation import Collator
from polyptych.data.records import write_records
from polyptych.errors import PolyptychError
from polyptych.models.checkpoint import load_model
from polyptych.testing import tiny_examples, tiny_model
from polyptych.training.building import build_model
from polyptych.training.freezing import frozen_modules, matches, select_trainable
from polyptych.training.optimization import parameter_groups
from polyptych.training.recipe import ModelRecipe, OptimizerRecipe
from polyptych.training.supervised import train

NO_TEXTS = list[str]

SMALL = {
    "model_type": "polyptych_blip2",
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    "qformer_config": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
    "text_config": {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "num_query_tokens": 2,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved base that reads each image alone."""
    folder = tmp_path_factory.mktemp("base")
    config = tiny_model(guidance="paper").config
    config.guidance = "off"
    type(tiny_model())(config).save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return folder


def test_from_nothing_to_a_trained_model_in_one_recipe(tmp_path: Path) -> None:
    single = [e for e in tiny_examples(12) if len(e.images) <= 1]
    write_records(tmp_path / "records.jsonl", single)
    recipe = small_recipe(
        stage="align",
        model={"config": SMALL, "tokenizer_size": 300, "layout": {"template": "qa"}},
        data={"train": str(tmp_path / "records.jsonl")},
        trainable=("*",),
        steps=2,
    )
    result = train(recipe, out=tmp_path / "run")
    model, processor = load_model(result.final)
    assert model.config.model_type == "polyptych_blip2"
    assert model.config.text_config.vocab_size == len(processor.tokenizer) <= 300
    assert model.config.image_token_id == processor.image_token_id
    assert (processor.tokens_per_image, processor.template) == (2, "qa")
    pixels = processor(text="what?", images=[])
    assert model.generate(**pixels, max_new_tokens=2).shape[0] == 1


def test_a_llava_from_nothing() -> None:
    llava = {n: v for n, v in SMALL.items() if n not in ("qformer_config", "num_query_tokens")}
    recipe = ModelRecipe(config={**llava, "model_type": "polyptych_llava"}, tokenizer_size=300)
    model, processor = build_model(recipe, NO_TEXTS)
    assert model.config.tokens_per_image == processor.tokens_per_image == 4
    assert model.config.image_token_id == processor.image_token_id
    with torch.inference_mode():
        assert model(**Collator(processor, training=True)(tiny_examples(3))).loss > 0


def test_a_llava_of_convolutions_needs_the_number_of_tokens() -> None:
    vision = {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [16],
        "depths": [1],
        "layer_type": "basic",
        "image_size": 28,
    }
    config = {
        "model_type": "polyptych_llava",
        "vision_config": vision,
        "text_config": SMALL["text_config"],
    }
    recipe = ModelRecipe(config=config, tokenizer_size=300)
    with pytest.raises(PolyptychError, match=r"layout needs tokens_per_image: .* resnet"):
        build_model(recipe, NO_TEXTS)
    recipe = ModelRecipe(config=config, tokenizer_size=300, layout={"tokens_per_image": 49})
    model, processor = build_model(recipe, NO_TEXTS)
    assert model(**Collator(processor, training=True)(tiny_examples(2))).loss > 0


def test_a_base_becomes_a_method(base: Path) -> None:
    """Weights that fit are kept; the W-former starts from the base's Q-Former."""
    recipe = ModelRecipe(
        checkpoint=str(base),
        config={"model_type": "polyptych_sam", "guidance": "paper"},
        parts={"connector.guidance.w_former.tower": f"{base}#connector.qformer"},
    )
    model, _ = build_model(recipe, NO_TEXTS)
    start = load_model(base)[0].state_dict()
    ours = model.state_dict()
    assert all(torch.equal(ours[name], start[name]) for name in start)
    tower = {n: v for n, v in ours.items() if n.startswith("connector.guidance.w_former.tower.")}
    assert tower
    for name, value in tower.items():
        source = name.replace("connector.guidance.w_former.tower", "connector.qformer")
        assert torch.equal(value, start[source])


def test_the_language_model_may_come_from_transformers(base: Path, tmp_path: Path) -> None:
    other = tiny_model(seed=5).language_model
    other.save_pretrained(tmp_path)
    recipe = ModelRecipe(checkpoint=str(base), parts={"language_model": str(tmp_path)})
    model, _ = build_model(recipe, NO_TEXTS)
    theirs = other.state_dict()
    assert all(torch.equal(v, theirs[n]) for n, v in model.language_model.state_dict().items())


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({}, "needs a checkpoint, a processor or a tokenizer_size"),
        ({"checkpoint": "/nowhere"}, "/nowhere: no model here"),
        ({"checkpoint": "BASE", "parts": {"ears": "BASE"}}, "the model has no part 'ears'"),
        (
            {"checkpoint": "BASE", "parts": {"connector": "BASE#vision_encoder"}},
            r"weights of connector are missing",
        ),
        (
            {"checkpoint": "BASE", "config": {"qformer_config": {"num_hidden_layers": 1}}},
            "weights have no place in a polyptych_sam",
        ),
        (
            {"checkpoint": "BASE", "config": {"num_query_tokens": 5}},
            "weights do not fit",
        ),
    ],
)
def test_what_does_not_fit_is_an_error(base: Path, recipe: dict, message: str) -> None:
    text = str(recipe).replace("BASE", str(base))
    with pytest.raises(PolyptychError, match=message):
        build_model(ModelRecipe(**eval(text)), NO_TEXTS)


def test_patterns() -> None:
    name = "connector.guidance.w_former.norm.weight"
    for pattern in ("connector", "connector.guidance", "guidance", "guidance.w_former", "*.norm.*"):
        assert matches(name, pattern), pattern
    for pattern in ("w_former", "guid", "connector.guid", "norm.weight", "vision_encoder"):
        assert not matches(name, pattern), pattern


def test_selection_and_frozen_modules() -> None:
    model = tiny_model()
    names = select_trainable(model, ("connector", "!guidance"))
    assert names == [name for name, p in model.named_parameters() if p.requires_grad]
    assert {name.split(".")[1] for name in names} == {"qformer", "projection"}
    assert set(frozen_modules(model)) == {
        model.vision_encoder,
        model.language_model,
        model.connector.guidance,
    }


def test_vectors_do_not_decay_and_parts_have_their_own_rate() -> None:
    model = nn.ModuleDict({"old": nn.Linear(3, 2), "new": nn.Linear(3, 2)})
    settings = OptimizerRecipe(
        learning_rate=0.5, weight_decay=0.1, learning_rate_multipliers={"old": 0.1}
    )
    groups = parameter_groups(model, settings)
    seen = {p: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert seen == {
        model["old"].weight: (0.05, 0.1),
        model["old"].bias: (0.05, 0.0),
        model["new"].weight: (0.5, 0.1),
        model["new"].bias: (0.5, 0.0),
    }


def test_sets_come_in_their_shares(tmp_path: Path) -> None:
    for name in ("often", "rarely"):
        examples = [replace(e, id=f"{name}-{e.id}") for e in tiny_examples(4, (1,))]
        write_records(tmp_path / f"{name}.jsonl", examples)
    sources = [
        {"path": str(tmp_path / "often.jsonl"), "weight": 3},
        {"path": str(tmp_path / "rarely.jsonl"), "weight": 1},
    ]
    from polyptych.training.data import TrainingData

    data = TrainingData(small_recipe(data={"train": sources}, steps=4))
    drawn = [data.train[index].id.split("-")[0] for index in range(len(data.train))]
    assert (drawn.count("often"), drawn.count("rarely")) == (24, 8)


def test_peft_in_the_plain_trainer(tmp_path: Path) -> None:
    """LoRA on the language model, connector and head trained whole: no code of ours is needed."""
    peft = pytest.importorskip("peft")
    from transformers import Trainer, TrainingArguments

    from polyptych.data.collation import Collator

    config = peft.LoraConfig(
        r=4,
        target_modules=r".*language_model.*\.(q_proj|v_proj)",
        modules_to_save=["connector", "lm_head"],
    )
    model = peft.get_peft_model(small_model(), config)
    examples = tiny_examples(8)
    collator = Collator(PROCESSOR, training=True)
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(tmp_path / "run"),
            per_device_train_batch_size=8,
            max_steps=25,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            remove_unused_columns=False,
            label_names=["labels"],
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=examples,
        data_collator=collator,
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    model.eval().save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(small_model(), str(tmp_path / "adapter")).eval()
    batch = collator(examples)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)


def test_a_trained_model_is_the_start_of_the_next_stage(base: Path, tmp_path: Path) -> None:
    first = train(
        small_recipe(model={"checkpoint": str(base)}, steps=2, trainable=("connector",)),
        out=tmp_path / "align",
        train_examples=tiny_examples(8),
    )
    second = small_recipe(
        model={
            "checkpoint": first.final,
            "config": {"model_type": "polyptych_sam", "guidance": "released"},
        },
        trainable=("guidance",),
        steps=2,
    )
    result = train(second, out=tmp_path / "finetune", train_examples=tiny_examples(8))
    before, after = (load_model(folder)[0].state_dict() for folder in (first.final, result.final))
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert set(after) - set(before)
