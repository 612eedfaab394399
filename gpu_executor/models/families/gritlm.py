"""GritLM (Muennighoff et al., 2024): Mistral, trained to generate as it is and to embed without causality."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.mistral import mistral
from gpu_executor.models.registry import Resolved, architecture


@architecture("GritLM", examples="GritLM 7B")
def gritlm(config: ConfigReader, architecture: str) -> Resolved:
    return mistral(config, architecture)
