"""Ultravox (Fixie.ai, 2024): a language model that hears through Whisper's encoder and a small projector."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.text_model import text_model
from gpu_executor.models.families.towers import read_activation, with_tying
from gpu_executor.models.families.whisper import read_whisper, whisper_rules
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import rename, skip
from gpu_executor.models.towers.ultravox import Ultravox

_PROJECTOR = r"multi_modal_projector\."


def _read_tower(config: ConfigReader, out_size: int) -> Ultravox:
    for key in ("audio_latency_block_size", "num_projector_layers"):
        if config(key, default=0):
            raise config.wrong((key,), config(key), "null or 0: nothing else is served")
    act = config("projector_act", default="swiglu")
    return Ultravox(
        encoder=read_whisper(config.section("audio_config")),
        stack_factor=config.integer("stack_factor", default=8),
        inner_size=config.integer("hidden_size", default=4096),
        act=act if act == "swiglu" else read_activation(config, "projector_act", default="gelu"),
        norm_in_middle=config.flag("projector_ln_mid", default=False),
        out_size=out_size,
    )


@architecture("UltravoxModel", inputs=("text", "audio"), examples="Ultravox")
def ultravox(config: ConfigReader, architecture: str) -> Resolved:
    resolved = text_model(with_tying(config, "text_config"), "text_config", prefix=r"language_model\.")
    tower = _read_tower(config, resolved.spec.decoder.hidden_size)
    rules = (
        *resolved.rules,
        *whisper_rules(r"audio_tower\.(?:model\.encoder\.)?", "tower.encoder.", "tower.norm"),
        skip(r"audio_tower\.(?:model\.decoder\..+|proj_out\.weight)"),  # of Whisper's own repository
        rename(_PROJECTOR + r"ln_pre\.weight", "tower.norm_pre.weight"),
        rename(_PROJECTOR + r"linear_([12])\.weight", r"tower.linear\1.weight"),
        rename(_PROJECTOR + r"ln_(mid|post)\.weight", r"tower.norm_\1.weight"),
    )
    spec = dataclasses.replace(resolved.spec, architecture=architecture, tower=tower)
    parts = (("text_config", "language_model."), ("audio_config", "audio_tower."))
    return dataclasses.replace(resolved, spec=spec, rules=rules, parts=parts)
