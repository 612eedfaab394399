"""Idefics3 (Laurençon et al., 2024): SigLIP over tiles of a picture, in front of Llama 3."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.navit import navit_rules, read_navit
from gpu_executor.models.families.text_model import text_model
from gpu_executor.models.families.towers import with_tying
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import rename
from gpu_executor.models.towers.idefics3 import Idefics3Vision

_VISION, _CONNECTOR = r"(?:model\.)?vision_model\.", r"(?:model\.)?connector\.modality_projection\."


@architecture("Idefics3ForConditionalGeneration", inputs=("text", "image"), examples="Idefics3")
def idefics3(config: ConfigReader, architecture: str) -> Resolved:
    # Released files name an architecture of their makers in this section.
    text = {key: value for key, value in config.section("text_config").data.items() if key != "architectures"}
    text = ConfigReader(text).with_defaults(rms_norm_eps=1e-5).data
    resolved = text_model(
        with_tying(config.updated({"text_config": text}), "text_config"),
        "text_config",
        prefix=r"(?:(?:model\.)?text_model\.)?",
    )
    section = config.section("vision_config")
    navit = read_navit(section)
    tower = Idefics3Vision(navit, config.integer("scale_factor", default=2), resolved.spec.decoder.hidden_size)
    rules = (
        *resolved.rules,
        *navit_rules(_VISION, "tower.vision.", navit),
        rename(_VISION + r"post_layernorm\.(weight|bias)", r"tower.norm.\1"),
        rename(_CONNECTOR + r"proj\.weight", "tower.projector.weight"),
    )
    spec = dataclasses.replace(resolved.spec, architecture=architecture, tower=tower)
    return dataclasses.replace(resolved, spec=spec, rules=rules)
