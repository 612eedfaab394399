"""What released multimodal checkpoints' config.json files say is understood, and both layouts of their tensors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file

from forebay.errors import CheckpointError
from gpu_executor.models import registry
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.names import required, tower_shapes
from gpu_executor.models.spec import Attention, ModelSpec
from preprocess.media.decoded import Image
from tests.gpu_executor.models.media_cases import llava, llava_next, paligemma
from tests.gpu_executor.models.media_checkpoints import MediaCheckpoint, generate, picture, prompt_text

CLIP_L = {
    "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
    "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
}  # fmt: skip
SO400M = {
    "hidden_size": 1152, "intermediate_size": 4304, "model_type": "siglip_vision_model", "num_attention_heads": 16,
    "num_hidden_layers": 27, "patch_size": 14,
}  # fmt: skip
CASES = [
    llava.LLAVA_CLIP, llava.LLAVA_SIGLIP, llava.LLAVA_LAYERS, llava.PIXTRAL_HF, llava_next.LLAVA_NEXT,
    llava_next.LLAVA_NEXT_VIDEO, llava_next.LLAVA_ONEVISION, paligemma.PALIGEMMA, paligemma.PALIGEMMA_2,
]  # fmt: skip


def spec_of(architecture: str, **config: Any) -> ModelSpec:
    return registry.resolve(ConfigReader({"architectures": [architecture], **config})).spec


def num_parameters(spec: ModelSpec) -> int:
    """Of the text model, without norms and biases."""
    decoder, mixer, mlp = spec.decoder, spec.decoder.layers[0].mixer, spec.decoder.layers[0].mlp
    assert isinstance(mixer, Attention)
    size = decoder.hidden_size
    layer = 2 * size * mixer.head_dim * (mixer.num_heads + mixer.num_kv_heads) + 3 * size * mlp.size
    return spec.vocab_size * size * (1 if decoder.tied else 2) + len(decoder.layers) * layer


@pytest.mark.parametrize("checkpoint", CASES, ids=lambda checkpoint: checkpoint.case.name)
def test_what_transformers_saves_is_the_same_model(checkpoint: MediaCheckpoint, tmp_path: Path) -> None:
    case = checkpoint.case
    getattr(transformers, case.architecture).config_class.from_dict(case.config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text()) | {"architectures": [case.architecture]}
    assert registry.resolve(ConfigReader(saved)).spec == spec_of(case.architecture, **case.config)


def test_llava_1_5_leaves_out_what_llama_is_by_default() -> None:
    text = {
        "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096,
        "model_type": "llama", "rms_norm_eps": 1e-05, "torch_dtype": "float16", "vocab_size": 32064,
    }  # fmt: skip
    spec = spec_of(
        "LlavaForConditionalGeneration", image_token_index=32000, model_type="llava", projector_hidden_act="gelu",
        text_config=text, tie_word_embeddings=False, vision_config=CLIP_L, vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    assert 6.5e9 < num_parameters(spec) < 7e9
    assert (spec.max_model_len, spec.tower.vision.vit.num_layers) == (4096, 23)
    assert tower_shapes(spec)["vision.positions"] == (577, 1024)


def test_llava_1_6_leaves_out_what_mistral_is_by_default_and_has_no_window() -> None:
    text = {
        "architectures": ["MistralForCausalLM"], "intermediate_size": 14336, "max_position_embeddings": 32768,
        "model_type": "mistral", "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
        "sliding_window": None, "vocab_size": 32064,
    }  # fmt: skip
    spec = spec_of(
        "LlavaNextForConditionalGeneration", model_type="llava_next", text_config=text, vision_config=CLIP_L,
        image_grid_pinpoints=[[336, 672], [672, 336]], use_image_newline_parameter=True, tie_word_embeddings=False,
    )  # fmt: skip
    assert 7e9 < num_parameters(spec) < 7.5e9
    assert spec.decoder.layers[0].mixer.window is None
    assert "tower.newline" in required(spec)


def test_onevision_takes_the_last_of_26_layers_and_ties_where_the_text_does() -> None:
    text = {
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "intermediate_size": 4864, "max_window_layers": 24,
        "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "vocab_size": 152000,
        "use_sliding_window": False,
    }  # fmt: skip
    vision = SO400M | {"image_size": 384, "num_hidden_layers": 26, "vision_use_head": False}
    spec = spec_of(
        "LlavaOnevisionForConditionalGeneration", model_type="llava_onevision", text_config=text, vision_config=vision,
        tie_word_embeddings=False, vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    assert spec.decoder.tied
    assert (spec.tower.vision.vit.num_layers, spec.tower.vision.side) == (26, 27)


@pytest.mark.parametrize(
    ("text", "num_billions"),
    [
        (
            {
                "hidden_size": 2048, "intermediate_size": 16384, "model_type": "gemma", "num_attention_heads": 8,
                "num_hidden_layers": 18, "num_image_tokens": 256, "num_key_value_heads": 1, "vocab_size": 257216,
            },
            2.5,
        ),
        ({"hidden_size": 2304, "intermediate_size": 9216, "model_type": "gemma2", "num_attention_heads": 8,
          "num_hidden_layers": 26, "num_image_tokens": 256, "num_key_value_heads": 4, "vocab_size": 257216}, 2.6),
    ],
    ids=["paligemma", "paligemma-2"],
)  # fmt: skip
def test_paligemma_leaves_out_what_gemma_is_by_default(text: dict[str, Any], num_billions: float) -> None:
    vision = SO400M | {"projection_dim": 2048, "projector_hidden_act": "gelu_fast", "vision_use_head": False}
    spec = spec_of(
        "PaliGemmaForConditionalGeneration", model_type="paligemma", text_config=text, vision_config=vision,
        image_token_index=257152, projection_dim=2048, hidden_size=2048,
    )  # fmt: skip
    assert num_parameters(spec) == pytest.approx(num_billions * 1e9, rel=0.03)
    assert spec.prefix_bidirectional and spec.decoder.tied and spec.max_model_len == 8192
    assert (spec.tower.vision.vit.num_layers, spec.tower.vision.final_norm) == (27, True)


def test_pixtral_12b_in_the_format_of_hugging_face() -> None:
    text = {
        "head_dim": 128, "hidden_size": 5120, "intermediate_size": 14336, "is_composition": True,
        "max_position_embeddings": 1024000, "model_type": "mistral", "num_hidden_layers": 40, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000000.0, "sliding_window": None, "vocab_size": 131072,
    }  # fmt: skip
    vision = {
        "head_dim": 64, "hidden_act": "silu", "image_size": 1024, "model_type": "pixtral", "patch_size": 16,
        "rope_theta": 10000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    spec = spec_of(
        "LlavaForConditionalGeneration", model_type="llava", text_config=text, vision_config=vision, image_token_index=10,
        vision_feature_layer=-1, vision_feature_select_strategy="full", projector_hidden_act="gelu",
    )  # fmt: skip
    assert 12e9 < num_parameters(spec) < 12.5e9
    assert (spec.tower.vision.num_layers, spec.tower.vision.act) == (24, "silu")


def test_pixtral_12b_in_mistral_format_needs_no_architecture() -> None:
    params = {
        "dim": 5120, "n_layers": 40, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
        "rope_theta": 1000000000.0, "norm_eps": 1e-05, "vocab_size": 131072,
        "vision_encoder": {
            "hidden_size": 1024, "num_channels": 3, "image_size": 1024, "patch_size": 16, "rope_theta": 10000.0,
            "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "adapter_bias": True,
            "image_token_id": 10,
        },
    }  # fmt: skip
    spec = registry.resolve(ConfigReader(params)).spec
    assert (spec.architecture, spec.max_model_len) == ("PixtralForConditionalGeneration", 128_000)
    assert 12e9 < num_parameters(spec) < 12.5e9
    with pytest.raises(CheckpointError, match=r"moe of config\.json"):
        registry.resolve(ConfigReader(params | {"moe": {"num_experts": 8}}))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"vision_feature_layer": -9}, "enough for the hidden state -9"),
        ({"vision_feature_layer": []}, "vision_feature_layer of config.json"),
        ({"vision_feature_select_strategy": "cls"}, "vision_feature_select_strategy of config.json"),
        ({"vision_config": {"model_type": "vit_mae"}}, "model_type of vision_config of config.json is 'vit_mae'"),
        ({"projector_hidden_act": "sin"}, "projector_hidden_act of config.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_is_not_served_is_named(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(problem)):
        spec_of("LlavaForConditionalGeneration", **llava.LLAVA_CLIP.case.config | changes)


@pytest.mark.parametrize("checkpoint", [llava_next.LLAVA_NEXT, paligemma.PALIGEMMA], ids=lambda c: c.case.name)
def test_both_layouts_of_the_hub_are_the_same_model(checkpoint: MediaCheckpoint, tmp_path: Path) -> None:
    """The classic one, and that of transformers 4.52 to 4.57, which had a model without a head inside."""
    checkpoint.write(tmp_path / "saved")
    tensors = load_file(tmp_path / "saved" / "model.safetensors")
    classic, newer = {}, {}
    for name, tensor in tensors.items():
        bare = re.sub(r"^vision_tower\.(?!vision_model)", "vision_tower.vision_model.", name)
        classic[bare] = tensor
        newer["model." + re.sub(r"^language_model\.(model|lm_head)\.", r"language_model.", bare)] = tensor
        if name.startswith("language_model.lm_head"):
            newer["lm_head.weight"] = newer.pop("model.language_model.weight")
    assert any(name.startswith("language_model.model.layers.0.") for name in classic)
    results = []
    for layout, renamed in (("classic", classic), ("newer", newer)):
        folder = tmp_path / layout
        checkpoint.write_files(folder)
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
        ours, tokenizer = checkpoint.processor(folder)
        item = ours.prepare(Image(picture(40, 28)), 1)
        results.append(generate(folder, [ours.expand_text(prompt_text("<image>x", tokenizer), [item])]))
    assert results[0] == results[1]
