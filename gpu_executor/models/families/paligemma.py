"""PaliGemma (Beyer et al., 2024; PaliGemma 2: Steiner et al., 2024): SigLIP and one linear layer before Gemma.

A prompt's tokens see each other, pictures and text alike; what follows them is causal.
"""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llava import read_text, with_tower
from gpu_executor.models.families.vision_section import read_vision_section
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import rename
from gpu_executor.models.towers.llava import LinearProjector, Llava

_PROJECTOR = rename(r"(?:model\.)?multi_modal_projector\.linear\.(weight|bias)", r"tower.projector.\1")


@architecture("PaliGemmaForConditionalGeneration", inputs=("text", "image"), examples="PaliGemma, PaliGemma 2")
def paligemma(config: ConfigReader, architecture: str) -> Resolved:
    # What newer configs call bidirectional here is the prompt, which is so whatever they say.
    section = config.section("text_config").updated({"use_bidirectional_attention": False})
    text = read_text(config.updated({"text_config": section.data}), default_type="gemma")
    section = config.section("vision_config")
    vision = read_vision_section(section, final_norm=True, default_type="siglip_vision_model")
    projector = LinearProjector(vision.output_size, text.spec.decoder.hidden_size)
    resolved = with_tower(text, architecture, Llava(vision, projector), vision, _PROJECTOR)
    return dataclasses.replace(resolved, spec=dataclasses.replace(resolved.spec, prefix_bidirectional=True))
