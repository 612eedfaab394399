"""Chameleon (Chameleon Team, 2024): a Llama-like model in whose vocabulary pictures are tokens, as text is.

A VQ-GAN's encoder makes codes of a picture, and `vocabulary_map` tells the token of each code: "IMGIMG", the code's decimal
digits as letters A to J, and "Z". They are read alone: the model never generates them.
"""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, LLAMA_RULES, read_attention, read_biases, read_model
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename, skip, split_heads
from gpu_executor.models.spec import Attention, Norm
from gpu_executor.models.towers.chameleon import VqGan

_PREFIX, _DIGITS = "IMGIMG", str.maketrans("ABCDEFGHIJ", "0123456789")
_QK_NORM = Norm("layer", 1e-5)

# What transformers' config classes mean where config.json does not say.
_SIZES = {
    "vocab_size": 65536, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
}  # fmt: skip
_VQ_SIZES = {
    "embed_dim": 256, "num_embeddings": 8192, "latent_channels": 256, "resolution": 512, "in_channels": 3,
    "base_channels": 128, "channel_multiplier": [1, 1, 2, 2, 4], "num_res_blocks": 2,
}  # fmt: skip

_VQ = r"model\.vqmodel\."
_ENCODER, _DOWN = _VQ + r"encoder\.", _VQ + r"encoder\.down\.(\d+)\."


def _block_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        rename(theirs + r"(norm[12]|conv[12])\.(weight|bias)", ours),
        rename(theirs + r"(nin_shortcut)\.(weight|bias)", ours.replace(r"\3", "shortcut"), optional=True),
    )


def _attention_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        rename(theirs + r"(norm|q|k|v)\.(weight|bias)", ours, optional=True),
        rename(theirs + r"(proj_out)\.(weight|bias)", ours.replace(r"\3", "o"), optional=True),
    )


_TOWER_RULES = (
    rename(_ENCODER + r"conv_in\.(weight|bias)", r"tower.stem.\1"),
    *_block_rules(_DOWN + r"block\.(\d+)\.", r"tower.levels.\1.blocks.\2.\3.\4"),
    *_attention_rules(_DOWN + r"attn\.(\d+)\.", r"tower.levels.\1.attentions.\2.\3.\4"),
    rename(_DOWN + r"downsample\.conv\.(weight|bias)", r"tower.levels.\1.shrink.\2", optional=True),
    rename(_ENCODER + r"norm_out\.(weight|bias)", r"tower.norm.\1"),
    rename(_ENCODER + r"conv_out\.(weight|bias)", r"tower.latent.\1"),
    rename(_VQ + r"quant_conv\.(weight|bias)", r"tower.project.\1"),
    rename(_VQ + r"quantize\.embedding\.weight", r"tower.codes"),
    skip(_VQ + r"(?:post_quant_conv|decoder|loss)\..+"),  # the way back, which makes pictures
)


def _middle_rules(*, attends: bool) -> tuple[Rule, ...]:
    places = {"block_1": 0, "attn_1": 1, "block_2": 2} if attends else {"block_1": 0, "block_2": 1}
    rules: tuple[Rule, ...] = ()
    for name, index in places.items():
        theirs = _ENCODER + rf"(mid)\.({name})\."
        ours = rf"tower.middle.{index}.\3.\4"
        rules += _attention_rules(theirs, ours) if name == "attn_1" else _block_rules(theirs, ours)
    return rules


def _norm_rules(attention: Attention) -> tuple[Rule, ...]:
    return tuple(
        split_heads(
            rf"model\.layers\.(\d+)\.self_attn\.{part}_norm\.(weight|bias)",
            rf"layers.\1.mixer.{part}_norm.{{}}.\2",
            num_heads,
        )
        for part, num_heads in (("q", attention.num_heads), ("k", attention.num_kv_heads))
    )


def _token_ids(config: ConfigReader) -> dict[int, int]:
    """The token of each code."""
    names = config("vocabulary_map")
    if not isinstance(names, dict):
        raise config.wrong(("vocabulary_map",), names, "an object")
    codes = {}
    for name, token_id in names.items():
        if name.startswith(_PREFIX):
            code = name[len(_PREFIX) : -1].translate(_DIGITS)
            if not code.isdecimal():
                raise config.wrong(
                    ("vocabulary_map",), {name: token_id}, f"{_PREFIX}, a number in letters A to J, and Z"
                )
            codes[int(code)] = token_id
    return codes


def _read_tower(config: ConfigReader) -> VqGan:
    vq = config.section("vq_config").with_defaults(**_VQ_SIZES)
    token_ids, num_codes = _token_ids(config), vq.integer("num_embeddings")
    if not token_ids.keys() & range(num_codes):
        raise config.wrong(("vocabulary_map",), f"without a code below {num_codes:,}", "one that names codes")
    if vq.flag("double_latent", default=False):
        raise vq.wrong(("double_latent",), True, "false")
    multipliers = vq("channel_multiplier")
    if not isinstance(multipliers, list) or not all(type(factor) is int and factor > 0 for factor in multipliers):
        raise vq.wrong(("channel_multiplier",), multipliers, "a list of whole numbers above 0")
    base, vanilla = vq.integer("base_channels"), vq("attn_type", default="vanilla") == "vanilla"
    attending = vq("attn_resolutions", default=()) if vanilla else ()
    return VqGan(
        in_channels=vq.integer("in_channels"),
        base_channels=base,
        channels=tuple(base * factor for factor in multipliers),
        num_blocks=vq.integer("num_res_blocks"),
        attends=tuple(vq.integer("resolution") >> level in attending for level in range(len(multipliers))),
        middle_attends=vanilla,
        latent_channels=vq.integer("latent_channels"),
        code_size=vq.integer("embed_dim"),
        token_ids=tuple(
            token_ids.get(code, 0) for code in range(num_codes)
        ),  # 0 where none is named, as in transformers
    )


@architecture("ChameleonForConditionalGeneration", inputs=("text", "image"), examples="Chameleon 7B, Chameleon 30B")
def chameleon(config: ConfigReader, architecture: str) -> Resolved:
    config = config.with_defaults(**_SIZES)
    attention = dataclasses.replace(read_attention(config), qk_norm="heads", norm=_QK_NORM)
    swin = config.flag("swin_norm", default=False)  # of the 30B: norms behind the branches (Liu et al., 2022)
    spec = read_model(
        config,
        architecture,
        [attention] * config.integer("num_hidden_layers"),
        residual="branch_norm" if swin else "sequential",
    )
    tower = _read_tower(config)
    decoder = dataclasses.replace(spec.decoder, masked_ids=tuple(sorted(_token_ids(config).values())))
    rules = (*LLAMA_RULES, *_norm_rules(attention), *_TOWER_RULES, *_middle_rules(attends=tower.middle_attends))
    heads = (("q", attention.num_heads), ("k", attention.num_kv_heads))
    biases = every_layer(*(f"mixer.{part}_norm.{head}.bias" for part, count in heads for head in range(count)))
    spec = dataclasses.replace(spec, decoder=decoder, tower=tower)
    return Resolved(spec, rules, GATE + read_biases(config) + biases)
