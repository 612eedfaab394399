"""Pixtral (Agrawal et al., 2024) in mistral's own format: params.json, and tensors whose heads rotate neighbours.

Hugging Face's format of the same model is one of Llava's.
"""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, read_attention, read_model
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, permute_rope, rename
from gpu_executor.models.spec import Attention
from gpu_executor.models.towers.llava import Llava, Projector
from gpu_executor.models.towers.pixtral_vit import PixtralVit

_LAYER, _VISION = r"layers\.(\d+)\.", r"vision_encoder\."
_TEXT_KEYS = {
    "dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads", "head_dim": "head_dim",
    "n_kv_heads": "num_key_value_heads", "hidden_dim": "intermediate_size", "norm_eps": "rms_norm_eps",
    "vocab_size": "vocab_size", "rope_theta": "rope_theta",
}  # fmt: skip
# What other models in this format have.
_NOT_SERVED = ("moe", "yarn", "quantization", "quantized", "llama_4_scaling")
_NOT_SERVED_VISION = ("mm_projector_id", "add_pre_mm_projector_layer_norm")


@architecture(
    "PixtralForConditionalGeneration",
    inputs=("text", "image"),
    examples="Pixtral 12B",
    keys=("dim", "n_layers", "vision_encoder"),
)
def pixtral(config: ConfigReader, architecture: str) -> Resolved:
    vision = config.section("vision_encoder")
    for section, names in ((config, _NOT_SERVED), (vision, _NOT_SERVED_VISION)):
        for name in names:
            if section(name, default=None):
                raise section.wrong((name,), section(name), "absent: it is not served in this format")
    text = _text_config(config)
    attention = read_attention(text, window=config.integer("sliding_window", default=None))
    spec = read_model(text, architecture, [attention] * text.integer("num_hidden_layers"))
    vit = _read_vit(vision)
    projector = Projector(vit.output_size, spec.decoder.hidden_size, "gelu", vision.flag("adapter_bias", default=True))
    rules = (*_text_rules(attention), *_vision_rules(vit))
    return Resolved(dataclasses.replace(spec, tower=Llava(vit, projector)), rules, GATE)


def _text_config(config: ConfigReader) -> ConfigReader:
    """The text model's numbers under the names of config.json."""
    renamed = {name: config(key, default=None) for key, name in _TEXT_KEYS.items()}
    tied = config.flag("tied_embeddings", default=False)
    longest = config.integer("max_seq_len", "max_position_embeddings", default=128_000)
    data = renamed | {"tie_word_embeddings": tied, "max_position_embeddings": longest}
    return ConfigReader(data, config.max_model_len, config.where, config.task)


def _read_vit(vision: ConfigReader) -> PixtralVit:
    vision.head_dim("hidden_size", "num_attention_heads")
    return PixtralVit(
        patch_size=vision.integer("patch_size"),
        hidden_size=vision.integer("hidden_size"),
        mlp_size=vision.integer("intermediate_size"),
        num_heads=vision.integer("num_attention_heads"),
        num_layers=vision.integer("num_hidden_layers"),
        act="silu",
        theta=vision.number("rope_theta", default=10000.0),
        num_channels=vision.integer("num_channels", default=3),
    )


def _text_rules(attention: Attention) -> tuple[Rule, ...]:
    return (
        rename(r"tok_embeddings\.weight", "embed.weight"),
        rename(r"norm\.weight", "norm.weight"),
        rename(r"output\.weight", "head.weight", optional=True),
        rename(_LAYER + r"attention_norm\.weight", r"layers.\1.norm1.weight"),
        rename(_LAYER + r"ffn_norm\.weight", r"layers.\1.norm2.weight"),
        *_layer_rules(_LAYER, r"layers.\1.mixer.", r"layers.\1.mlp.", attention.head_dim),
    )


def _vision_rules(vit: PixtralVit) -> tuple[Rule, ...]:
    layer, target = _VISION + r"transformer\." + _LAYER, r"tower.vision.layers.\1."
    adapter = r"vision_language_adapter\.w_{}\.(weight|bias)"
    return (
        rename(_VISION + r"patch_conv\.weight", "tower.vision.patch.weight"),
        rename(_VISION + r"ln_pre\.weight", "tower.vision.pre_norm.weight"),
        rename(layer + r"attention_norm\.weight", target + "norm1.weight"),
        rename(layer + r"ffn_norm\.weight", target + "norm2.weight"),
        *_layer_rules(layer, target + "attn.", target + "mlp.", vit.hidden_size // vit.num_heads),
        rename(adapter.format("in"), r"tower.projector.up.\1"),
        rename(adapter.format("out"), r"tower.projector.down.\1"),
    )


def _layer_rules(layer: str, attention: str, mlp: str, head_dim: int) -> tuple[Rule, ...]:
    """The projections of a layer, of text or vision alike."""
    return (
        permute_rope(
            layer + r"attention\.w([qk])\.weight", attention + r"\2.weight", head_dim=head_dim, rope_dim=head_dim
        ),
        rename(layer + r"attention\.w([vo])\.weight", attention + r"\2.weight"),
        rename(layer + r"feed_forward\.w1\.weight", mlp + "gate.weight"),
        rename(layer + r"feed_forward\.w2\.weight", mlp + "down.weight"),
        rename(layer + r"feed_forward\.w3\.weight", mlp + "up.weight"),
    )
