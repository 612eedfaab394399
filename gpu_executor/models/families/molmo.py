"""Molmo (Deitke et al., 2024): CLIP before Qwen2 or OLMo (their norms before or behind the branches), under OLMo's names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, read_attention, read_model
from gpu_executor.models.families.tower_rules import skip_layers_from
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, change, rename, split_gate_up, split_qkv
from gpu_executor.models.spec import Attention
from gpu_executor.models.towers.clip_vit import ClipVit
from gpu_executor.models.towers.molmo import MolmoVision
from gpu_executor.models.towers.vit_layers import VitLayers

_TRANSFORMER, _BACKBONE = r"model\.transformer\.", r"model\.vision_backbone\."
_BLOCK = _TRANSFORMER + r"blocks\.(\d+)\."
_VIT, _VIT_LAYER = _BACKBONE + r"image_vit\.", _BACKBONE + r"image_vit\.transformer\.resblocks\.(\d+)\."
_TARGET = r"tower.vision.vit.layers.\1."
# CLIP ViT-L/14 of 336 pixels without its last layer, which config.json does not mention.
_CLIP_LARGE = {
    "image_emb_dim": 1024, "image_num_heads": 16, "image_num_layers": 23, "image_mlp_dim": 4096, "image_norm_eps": 1e-5,
    "image_patch_size": 14, "image_default_input_size": [336, 336],
}  # fmt: skip
_OUTPUTS = (-2, -9)  # layers whose outputs are joined
_NUM_TOKENS = 128  # that only pictures bring


@architecture("MolmoForCausalLM", inputs=("text", "image"), examples="Molmo 7B-D, Molmo 7B-O, Molmo 72B")
def molmo(config: ConfigReader, architecture: str) -> Resolved:
    if config("layer_norm_type", default="rms") != "rms":
        raise config.wrong(("layer_norm_type",), config("layer_norm_type"), "rms, as in all released models")
    vocab_size = config.integer("embedding_size", "vocab_size")
    size, tokens = config.integer("intermediate_size"), range(vocab_size, vocab_size + _NUM_TOKENS)
    config = config.updated(
        {
            "intermediate_size": size // 2,  # of gate and up together
            "rms_norm_eps": config.number("layer_norm_eps", default=1e-5),
            "vocab_size": tokens.stop,
            "tie_word_embeddings": config.flag("weight_tying", default=False),
        }
    )
    attention = dataclasses.replace(
        read_attention(config),
        qk_norm="projection" if config.flag("attention_layer_norm", default=False) else None,
        clip=config.number("clip_qkv", default=None),
    )
    residual = "branch_norm" if config.flag("norm_after", default=False) else "sequential"
    spec = read_model(config, architecture, [attention] * config.integer("num_hidden_layers"), residual=residual)
    tower = MolmoVision(
        _read_vision(config.section("vision_backbone").with_defaults(**_CLIP_LARGE)),
        projector_size=size // 2,
        output_size=spec.decoder.hidden_size,
        first_token_id=vocab_size,
        num_tokens=_NUM_TOKENS,
    )
    decoder = dataclasses.replace(spec.decoder, masked_ids=tuple(tokens))
    spec = dataclasses.replace(spec, decoder=decoder, tower=tower)
    extras = GATE
    if config.flag("qkv_bias", default=False):
        extras += every_layer("mixer.q.bias", "mixer.k.bias", "mixer.v.bias")
    return Resolved(spec, (*_text_rules(attention), *_tower_rules(tower)), extras)


def _read_vision(vision: ConfigReader) -> ClipVit:
    vision.head_dim("image_emb_dim", "image_num_heads")
    outputs = tuple(vision.integer("image_num_layers") + 1 + index for index in _OUTPUTS)
    if min(outputs) < 1:
        raise vision.wrong(("image_num_layers",), vision("image_num_layers"), f"at least {-min(_OUTPUTS)}")
    side = vision("image_default_input_size")
    vit = VitLayers(
        hidden_size=vision.integer("image_emb_dim"),
        num_heads=vision.integer("image_num_heads"),
        mlp_size=vision.integer("image_mlp_dim"),
        num_layers=max(outputs),
        act="quick_gelu",
        eps=vision.number("image_norm_eps"),
    )
    return ClipVit(vit, side[0], vision.integer("image_patch_size"), outputs, class_token=True, drops_first=True)


def _text_rules(attention: Attention) -> tuple[Rule, ...]:
    gate_up = split_gate_up(_BLOCK + r"ff_proj\.weight", r"layers.\1.mlp.{}.weight")
    return (
        change(_TRANSFORMER + r"wte\.embedding", "embed.weight", _with_room(_NUM_TOKENS)),
        split_qkv(_BLOCK + r"att_proj\.(weight|bias)", r"layers.\1.mixer.{}.\2", attention),
        rename(_BLOCK + r"attn_out\.weight", r"layers.\1.mixer.o.weight"),
        rename(_BLOCK + r"([qk])_norm\.weight", r"layers.\1.mixer.\2_norm.weight", optional=True),
        dataclasses.replace(gate_up, targets=gate_up.targets[::-1]),  # up before gate
        rename(_BLOCK + r"ff_out\.weight", r"layers.\1.mlp.down.weight"),
        rename(_BLOCK + r"attn_norm\.weight", r"layers.\1.norm1.weight"),
        rename(_BLOCK + r"ff_norm\.weight", r"layers.\1.norm2.weight"),
        rename(_TRANSFORMER + r"ln_f\.weight", "norm.weight"),
        change(_TRANSFORMER + r"ff_out\.weight", "head.weight", _with_room(_NUM_TOKENS), optional=True),
    )


def _tower_rules(tower: MolmoVision) -> tuple[Rule, ...]:
    patch = tower.vision.patch_size

    def as_convolution(weight: torch.Tensor) -> torch.Tensor:
        return weight.unflatten(1, (patch, patch, 3)).permute(0, 3, 1, 2)

    pooling, projector = _BACKBONE + r"image_pooling_2d\.", _BACKBONE + r"image_projector\."
    return (
        rename(_TRANSFORMER + r"wte\.new_embedding", "tower.tokens"),
        skip_layers_from(_VIT + r"transformer\.resblocks\.", tower.vision.vit.num_layers),
        rename(_VIT + r"class_embedding", "tower.vision.class_embedding"),
        rename(_VIT + r"positional_embedding", "tower.vision.positions"),
        change(_VIT + r"patch_embedding\.weight", "tower.vision.patch.weight", as_convolution),
        rename(_VIT + r"pre_ln\.(weight|bias)", r"tower.vision.pre_norm.\1"),
        rename(_VIT_LAYER + r"attention_norm\.(weight|bias)", _TARGET + r"norm1.\2"),
        rename(_VIT_LAYER + r"attention\.w([qkvo])\.(weight|bias)", _TARGET + r"attn.\2.\3"),
        rename(_VIT_LAYER + r"ffn_norm\.(weight|bias)", _TARGET + r"norm2.\2"),
        rename(_VIT_LAYER + r"feed_forward\.w1\.(weight|bias)", _TARGET + r"mlp.up.\2"),
        rename(_VIT_LAYER + r"feed_forward\.w2\.(weight|bias)", _TARGET + r"mlp.down.\2"),
        rename(_BACKBONE + r"pad_embed", "tower.padding"),
        rename(pooling + r"w([qkvo])\.(weight|bias)", r"tower.\1.\2"),
        rename(projector + r"w1\.weight", "tower.gate.weight"),
        rename(projector + r"w3\.weight", "tower.up.weight"),
        rename(projector + r"w2\.weight", "tower.down.weight"),
    )


def _with_room(num_tokens: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Rows of zeros for tokens that only pictures bring: the tower makes their embeddings, and nobody generates them."""

    def with_room(table: torch.Tensor) -> torch.Tensor:
        return F.pad(table, (0, 0, 0, num_tokens))

    return with_room
