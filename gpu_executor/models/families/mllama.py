"""Llama 3.2 Vision ("The Llama 3 Herd of Models", 2024): Llama with layers between that read the tiles of pictures.

Those layers are skipped for prompts without pictures. Embeddings have eight rows more than the head: the token of a picture
is read, and never generated.
"""

from __future__ import annotations

import dataclasses

import torch

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import read_attention, read_mlp, read_model
from gpu_executor.models.families.towers import read_activation
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, change, rename
from gpu_executor.models.spec import Layer
from gpu_executor.models.towers.mllama import MllamaVision
from gpu_executor.models.towers.vit_layers import VitLayers

_NUM_READ_ONLY = 8  # rows of the embedding behind the vocabulary

# What transformers' config classes mean where a section does not say.
_TEXT_SIZES = {
    "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "rope_theta": 500000.0,
    "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
}  # fmt: skip
_VISION_SIZES = {
    "hidden_size": 1280, "num_hidden_layers": 32, "num_global_layers": 8, "attention_heads": 16, "num_channels": 3,
    "intermediate_size": 5120, "image_size": 448, "patch_size": 14, "norm_eps": 1e-5, "max_num_tiles": 4,
    "intermediate_layers_indices": [3, 7, 15, 23, 30], "hidden_act": "gelu",
}  # fmt: skip
_NUM_ARRANGEMENTS = 8  # of up to four tiles

# The first form is that of most checkpoints, the second what transformers 4.52 to 4.57 wrote.
_TEXT = r"(?:language_model\.model|model\.language_model)\."
_LAYER = _TEXT + r"layers\.(\d+)\."
_VISION = r"(?:model\.)?vision_model\."


def tanh(gate: torch.Tensor) -> torch.Tensor:
    """A gate as branches are multiplied by it."""
    return gate.tanh()


def with_read_only_rows(head: torch.Tensor) -> torch.Tensor:
    """The head as large as the embedding; what it says of the rows that it does not have is masked."""
    return torch.cat([head, head.new_zeros(_NUM_READ_ONLY, *head.shape[1:])])


_TEXT_RULES = (
    rename(_TEXT + r"embed_tokens\.weight", "embed.weight"),
    rename(_TEXT + r"norm\.weight", "norm.weight"),
    change(r"(?:language_model\.)?lm_head\.weight", "head.weight", with_read_only_rows),
    rename(_LAYER + r"self_attn\.([qkvo])_proj\.weight", r"layers.\1.mixer.\2.weight", optional=True),
    rename(_LAYER + r"cross_attn\.([qkvo])_proj\.weight", r"layers.\1.cross.\2.weight", optional=True),
    rename(_LAYER + r"cross_attn\.([qk])_norm\.weight", r"layers.\1.cross.\2_norm.weight", optional=True),
    change(_LAYER + r"cross_attn_attn_gate", r"layers.\1.cross_gate", tanh, optional=True),
    change(_LAYER + r"cross_attn_mlp_gate", r"layers.\1.mlp_gate", tanh, optional=True),
    rename(_LAYER + r"mlp\.(gate|up|down)_proj\.weight", r"layers.\1.mlp.\2.weight"),
    rename(_LAYER + r"post_attention_layernorm\.weight", r"layers.\1.norm2.weight"),
)


def _input_norms(reading: list[int]) -> tuple[Rule, ...]:
    """The first norm of layers that read pictures, and of the others."""
    layers, name = "|".join(map(str, reading)) or "(?!)", r"\.input_layernorm\.weight"
    return (
        rename(_TEXT + rf"layers\.({layers})" + name, r"layers.\1.cross_norm.weight", optional=True),
        rename(_TEXT + r"layers\.(\d+)" + name, r"layers.\1.norm1.weight", optional=True),
    )


def _tower_rules(vision: MllamaVision) -> tuple[Rule, ...]:
    size, rules = vision.vit.hidden_size, ()

    def tanh_for_each_number(gate: torch.Tensor) -> torch.Tensor:
        return gate.tanh().expand(size)

    for theirs, ours in (
        ("pre_tile_positional_embedding.embedding", "tiles"),
        ("post_tile_positional_embedding.embedding", "global_tiles"),
        ("gated_positional_embedding.tile_embedding", "tile_positions"),
    ):
        module, _, table = theirs.partition(".")
        rules += (
            rename(_VISION + rf"{module}\.{table}\.weight", f"tower.{ours}.table"),
            change(_VISION + rf"{module}\.gate", f"tower.{ours}.gate", tanh),
        )
    for theirs, ours in (("transformer", "vit"), ("global_transformer", "global_vit")):
        layer, mine = _VISION + theirs + r"\.layers\.(\d+)\.", rf"tower.{ours}.layers.\1."
        rules += (
            rename(layer + r"self_attn\.([qkvo])_proj\.weight", mine + r"attn.\2.weight"),
            rename(layer + r"input_layernorm\.(weight|bias)", mine + r"norm1.\2"),
            rename(layer + r"post_attention_layernorm\.(weight|bias)", mine + r"norm2.\2"),
            rename(layer + r"mlp\.fc1\.(weight|bias)", mine + r"mlp.up.\2"),
            rename(layer + r"mlp\.fc2\.(weight|bias)", mine + r"mlp.down.\2"),
            change(layer + r"gate_attn", mine + "scale1", tanh_for_each_number, optional=True),
            change(layer + r"gate_ffn", mine + "scale2", tanh_for_each_number, optional=True),
        )
    return (
        *rules,
        rename(_VISION + r"class_embedding", "tower.class_embedding"),
        rename(_VISION + r"patch_embedding\.weight", "tower.patch.weight"),
        rename(_VISION + r"gated_positional_embedding\.embedding", "tower.positions"),
        rename(_VISION + r"layernorm_(pre|post)\.(weight|bias)", r"tower.\1_norm.\2"),
        rename(r"(?:model\.)?multi_modal_projector\.(weight|bias)", r"tower.projector.\1"),
    )


def _read_vision(config: ConfigReader, out_size: int) -> MllamaVision:
    section = config.section("vision_config")
    section = section.with_defaults(attention_heads=section("num_attention_heads", default=None))
    section = section.with_defaults(**_VISION_SIZES)
    size, num_layers = section.integer("hidden_size"), section.integer("num_hidden_layers")
    section.head_dim("hidden_size", "attention_heads")  # must be whole
    outputs = section("intermediate_layers_indices")
    if not isinstance(outputs, list) or not all(
        type(index) is int and -num_layers <= index < num_layers for index in outputs
    ):
        raise section.wrong(("intermediate_layers_indices",), outputs, f"numbers of {num_layers} layers")
    width = size * (1 + len(outputs))
    if section.integer("vision_output_dim", default=width) != width:
        raise section.wrong(("vision_output_dim",), section("vision_output_dim"), f"{width:,}")
    vit = VitLayers(
        hidden_size=size,
        num_heads=section.integer("attention_heads"),
        mlp_size=section.integer("intermediate_size"),
        num_layers=num_layers,
        act=read_activation(section, "hidden_act", default="gelu"),
        eps=section.number("norm_eps"),
        qkv_bias=False,
        o_bias=False,
    )
    arrangements = section("supported_aspect_ratios", default=())
    return MllamaVision(
        vit,
        dataclasses.replace(vit, num_layers=section.integer("num_global_layers"), branch_scales=True),
        image_size=section.integer("image_size"),
        patch_size=section.integer("patch_size"),
        max_tiles=section.integer("max_num_tiles"),
        num_arrangements=len(arrangements) or _NUM_ARRANGEMENTS,
        outputs=tuple(index % num_layers for index in outputs),
        out_size=out_size,
        num_channels=section.integer("num_channels"),
    )


@architecture("MllamaForConditionalGeneration", inputs=("text", "image"), examples="Llama 3.2 11B Vision, 90B Vision")
def mllama(config: ConfigReader, architecture: str) -> Resolved:
    text = config.section("text_config").with_defaults(**_TEXT_SIZES)
    if text.flag("tie_word_embeddings", default=False):
        raise text.wrong(("tie_word_embeddings",), True, "false: the head is smaller than the embedding")
    num_layers, reading = text.integer("num_hidden_layers"), text("cross_attention_layers")
    if not isinstance(reading, list) or not set(reading) <= set(range(num_layers)):
        raise text.wrong(("cross_attention_layers",), reading, f"numbers of {num_layers} layers")
    attention, mlp = read_attention(text), read_mlp(text)
    cross = dataclasses.replace(attention, positions=None, qk_norm="head", causal=False)
    spec = read_model(text, architecture, [attention] * num_layers)
    decoder = dataclasses.replace(
        spec.decoder,
        layers=tuple(
            Layer(None, mlp, "gated_cross", cross=cross) if index in reading else layer
            for index, layer in enumerate(spec.decoder.layers)
        ),
        masked_ids=tuple(range(spec.vocab_size, spec.vocab_size + _NUM_READ_ONLY)),
    )
    vision = _read_vision(config, decoder.hidden_size)
    spec = dataclasses.replace(
        spec, decoder=decoder, vocab_size=spec.vocab_size + _NUM_READ_ONLY, tower=vision, reads_media=bool(reading)
    )
    rules = (*_TEXT_RULES, *_input_norms(reading), *_tower_rules(vision))
    return Resolved(spec, rules, every_layer("mlp.gate.weight"))
