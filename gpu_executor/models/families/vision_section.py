"""The vision transformer inside a multimodal model: a section of config.json, and the rules of its tensors."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.tower_rules import skip_layers_from
from gpu_executor.models.families.towers import read_activation
from gpu_executor.models.rules import Rule, rename, skip
from gpu_executor.models.towers.clip_vit import ClipVit
from gpu_executor.models.towers.pixtral_vit import PixtralVit
from gpu_executor.models.towers.vit_layers import VitLayers

Vision = ClipVit | PixtralVit

# What transformers' config classes mean where a section does not say; the large ones for a config without the section.
_CLIP = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224,
    "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
_SIGLIP = _CLIP | {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_PIXTRAL = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 16,
    "hidden_act": "gelu",
}  # fmt: skip
_LARGE_CLIP = _CLIP | {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336,
    "patch_size": 14,
}  # fmt: skip
_LARGE_SIGLIP = _SIGLIP | {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16, "image_size": 384,
    "patch_size": 14,
}  # fmt: skip


def read_vision_section(
    section: ConfigReader,
    outputs: tuple[int, ...] = (-1,),
    *,
    drops_first: bool = False,
    final_norm: bool = False,
    default_type: str = "clip_vision_model",
) -> Vision:
    """The transformer of a vision section, by its model_type, or else `default_type`.

    `outputs` are the hidden states that are taken, as transformers counts them: 0 enters the first layer, -1 is what the
    last layer gives, before any norm but `final_norm`.
    """
    model_type = section("model_type", default=default_type)
    if model_type == "pixtral":
        return _read_pixtral(section.with_defaults(**_PIXTRAL), outputs)
    if model_type not in ("clip_vision_model", "siglip_vision_model"):
        raise section.wrong(("model_type",), model_type, "clip_vision_model, siglip_vision_model or pixtral")
    is_clip = model_type == "clip_vision_model"
    sizes, large = (_CLIP, _LARGE_CLIP) if is_clip else (_SIGLIP, _LARGE_SIGLIP)
    section = section.with_defaults(**(sizes if section.data else large))
    section.head_dim("hidden_size", "num_attention_heads")  # must be whole
    outputs = _counted_from_0(section, outputs)
    vit = VitLayers(
        hidden_size=section.integer("hidden_size"),
        num_heads=section.integer("num_attention_heads"),
        mlp_size=section.integer("intermediate_size"),
        num_layers=max(outputs),
        act=read_activation(section, "hidden_act", default="gelu"),
        eps=section.number("layer_norm_eps"),
    )
    return ClipVit(
        vit,
        image_size=section.integer("image_size"),
        patch_size=section.integer("patch_size"),
        outputs=outputs,
        class_token=is_clip,
        drops_first=drops_first,
        final_norm=final_norm,
        num_channels=section.integer("num_channels", default=3),
    )


def _read_pixtral(section: ConfigReader, outputs: tuple[int, ...]) -> PixtralVit:
    section.head_dim("hidden_size", "num_attention_heads")
    outputs = _counted_from_0(section, outputs)
    if len(outputs) > 1:
        raise section.wrong(("model_type",), "pixtral", f"another one where {len(outputs)} hidden states are taken")
    theta = section.section("rope_parameters").number("rope_theta", default=None)
    return PixtralVit(
        patch_size=section.integer("patch_size"),
        hidden_size=section.integer("hidden_size"),
        mlp_size=section.integer("intermediate_size"),
        num_heads=section.integer("num_attention_heads"),
        num_layers=outputs[0],
        act=read_activation(section, "hidden_act", default="gelu"),
        theta=theta or section.number("rope_theta", default=10000.0),
        num_channels=section.integer("num_channels", default=3),
    )


def _counted_from_0(section: ConfigReader, outputs: tuple[int, ...]) -> tuple[int, ...]:
    """Hidden states by their number from the first one on."""
    num_states = section.integer("num_hidden_layers") + 1
    for index in outputs:
        if not -num_states <= index < num_states:
            raise section.wrong(("num_hidden_layers",), num_states - 1, f"enough for the hidden state {index}")
    return tuple(index % num_states for index in outputs)


def vision_rules(prefix: str, target: str, vision: Vision) -> tuple[Rule, ...]:
    """Tensors behind the regular expression `prefix`, which has no groups, to those of the module below `target`."""
    return (
        _clip_rules(prefix, target, vision) if isinstance(vision, ClipVit) else _pixtral_rules(prefix, target, vision)
    )


def _clip_rules(prefix: str, target: str, vision: ClipVit) -> tuple[Rule, ...]:
    """Layers above the last one that is taken are skipped, and the norm and the pooling behind all of them."""
    num_layers = vision.vit.num_layers
    layer, mine, no_layers = rf"{prefix}encoder\.layers\.(\d+)\.", rf"{target}vit.layers.\1.", not num_layers
    return (
        *((rename(rf"{prefix}post_layernorm\.(weight|bias)", rf"{target}final_norm.\1"),) if vision.final_norm else ()),
        skip(rf"{prefix}(?:post_layernorm|head)\..+"),
        skip(rf"{prefix}embeddings\.position_ids"),
        skip_layers_from(rf"{prefix}encoder\.layers\.", num_layers),
        rename(rf"{prefix}embeddings\.class_embedding", rf"{target}class_embedding", optional=not vision.class_token),
        rename(rf"{prefix}embeddings\.patch_embedding\.(weight|bias)", rf"{target}patch.\1"),
        rename(rf"{prefix}embeddings\.position_embedding\.weight", rf"{target}positions"),
        rename(rf"{prefix}pre_layrnorm\.(weight|bias)", rf"{target}pre_norm.\1", optional=not vision.class_token),
        rename(layer + r"layer_norm([12])\.(weight|bias)", mine + r"norm\2.\3", optional=no_layers),
        rename(layer + r"self_attn\.([qkv])_proj\.(weight|bias)", mine + r"attn.\2.\3", optional=no_layers),
        rename(layer + r"self_attn\.out_proj\.(weight|bias)", mine + r"attn.o.\2", optional=no_layers),
        rename(layer + r"mlp\.fc1\.(weight|bias)", mine + r"mlp.up.\2", optional=no_layers),
        rename(layer + r"mlp\.fc2\.(weight|bias)", mine + r"mlp.down.\2", optional=no_layers),
    )


def _pixtral_rules(prefix: str, target: str, vision: PixtralVit) -> tuple[Rule, ...]:
    layer, mine = rf"{prefix}transformer\.layers\.(\d+)\.", rf"{target}layers.\1."
    no_layers = not vision.num_layers
    return (
        skip_layers_from(rf"{prefix}transformer\.layers\.", vision.num_layers),
        rename(rf"{prefix}patch_conv\.weight", rf"{target}patch.weight"),
        rename(rf"{prefix}ln_pre\.weight", rf"{target}pre_norm.weight"),
        rename(layer + r"attention_norm\.weight", mine + r"norm1.weight", optional=no_layers),
        rename(layer + r"ffn_norm\.weight", mine + r"norm2.weight", optional=no_layers),
        rename(layer + r"attention\.([qkvo])_proj\.weight", mine + r"attn.\2.weight", optional=no_layers),
        rename(layer + r"feed_forward\.(gate|up|down)_proj\.weight", mine + r"mlp.\2.weight", optional=no_layers),
    )
