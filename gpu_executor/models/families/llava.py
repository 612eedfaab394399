"""Llava (Liu et al., 2023): a text model that sees the patches of a picture through a projector of two linears.

The tower is CLIP's, SigLIP's, or Pixtral's (Agrawal et al., 2024); Mantis (Jiang et al., 2024) is one with SigLIP's.
"""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.text_model import text_model
from gpu_executor.models.families.towers import read_activation
from gpu_executor.models.families.vision_section import (
    Vision,
    read_vision_section,
    vision_rules,
)
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename
from gpu_executor.models.towers.llava import Llava, Projector
from gpu_executor.models.towers.tower import TowerSpec

# Most checkpoints put every part below its own name; those that transformers 4.52 to 4.57 wrote have "model." before.
TEXT_PREFIX = r"(?:(?:model\.)?language_model\.)?"
_VISION_PREFIX = r"(?:model\.)?vision_tower\.(?:vision_model\.)?"
PROJECTOR = tuple(
    rename(rf"(?:model\.)?multi_modal_projector\.{theirs}\.(weight|bias)", rf"tower.projector.{ours}.\1")
    for theirs, ours in (("linear_1", "up"), ("linear_2", "down"))
)


def read_text(config: ConfigReader, *, default_type: str = "llama") -> Resolved:
    """The text model; its head is tied where either config says so."""
    section = config.section("text_config")
    tied = config.flag("tie_word_embeddings", default=False) or None
    return text_model(
        config.updated({"text_config": section.updated({"tie_word_embeddings": tied}).data}),
        "text_config",
        prefix=TEXT_PREFIX,
        default_type=default_type,
    )


def read_vision(
    config: ConfigReader, *, layer: int = -2, strategy: str = "default", default_type: str = "clip_vision_model"
) -> Vision:
    """The tower of a Llava-like config; `layer` and `strategy` where it does not say which hidden states it takes."""
    layers = config("vision_feature_layer", default=layer)
    outputs = tuple(layers) if isinstance(layers, list) else (layers,)
    if not outputs or not all(type(index) is int for index in outputs):
        raise config.wrong(("vision_feature_layer",), layers, "a whole number or a list of them")
    strategy = config("vision_feature_select_strategy", default=strategy)
    if strategy not in ("default", "full"):
        raise config.wrong(("vision_feature_select_strategy",), strategy, "default or full")
    section, drops_first = config.section("vision_config"), strategy == "default"
    return read_vision_section(section, outputs, drops_first=drops_first, default_type=default_type)


def read_projector(config: ConfigReader, vision: Vision, output_size: int) -> Projector:
    """The projector of a Llava-like config."""
    bias = config.flag("multimodal_projector_bias", default=True)
    return Projector(
        vision.output_size, output_size, read_activation(config, "projector_hidden_act", default="gelu"), bias
    )


def with_tower(text: Resolved, architecture: str, tower: TowerSpec, vision: Vision, *rules: Rule) -> Resolved:
    """The text model with a tower that has `vision`; `rules` are for what the tower has besides."""
    spec = dataclasses.replace(text.spec, architecture=architecture, tower=tower)
    mine = (*vision_rules(_VISION_PREFIX, "tower.vision.", vision), *rules)
    return Resolved(spec, mine + text.rules, text.extras)


@architecture(
    "LlavaForConditionalGeneration",
    inputs=("text", "image"),
    examples="LLaVA 1.5, LLaVA Interleave, Pixtral (HF format)",
)
@architecture("MantisForConditionalGeneration", inputs=("text", "image"), examples="Mantis")
def llava(config: ConfigReader, architecture: str) -> Resolved:
    text, vision = read_text(config), read_vision(config)
    projector = read_projector(config, vision, text.spec.decoder.hidden_size)
    return with_tower(text, architecture, Llava(vision, projector), vision, *PROJECTOR)
