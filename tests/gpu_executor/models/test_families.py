"""What released config.json files resolve to, where transformers has no such model and the goldens are small.

Keys that no family reads are left out, all others have the released values.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from forebay.errors import CheckpointError
from gpu_executor.mixers.state import PagedKv
from gpu_executor.models import registry
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.loader import load_model
from gpu_executor.models.spec import (
    Alibi,
    Attention,
    BlockSparseAttention,
    LinearScaling,
    LongRopeScaling,
    ModelSpec,
    Norm,
    Rope,
    Skip,
)
from tests.golden.materialize import materialize, read_golden

LLAMA_LIKE = {
    "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096,
    "num_attention_heads": 32, "num_hidden_layers": 32, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "vocab_size": 64000,
}  # fmt: skip
CHATGLM = {
    "add_bias_linear": False, "add_qkv_bias": True, "apply_residual_connection_post_layernorm": False,
    "ffn_hidden_size": 13696, "hidden_size": 4096, "kv_channels": 128, "layernorm_epsilon": 1e-5,
    "multi_query_attention": True, "multi_query_group_num": 2, "num_attention_heads": 32, "num_layers": 28,
    "padded_vocab_size": 65024, "post_layer_norm": True, "rmsnorm": True, "seq_length": 32768,
}  # fmt: skip
PHI3SMALL = {
    "blocksparse_block_size": 64, "blocksparse_homo_head_pattern": False, "blocksparse_num_local_blocks": 16,
    "blocksparse_vert_stride": 8, "dense_attention_every_n_layers": 2, "dummy_token_indices": [100256, 100258],
    "ff_dim_multiplier": None, "ff_intermediate_size": 14336, "gegelu_limit": 20.0, "hidden_act": "gegelu",
    "hidden_size": 4096, "layer_norm_epsilon": 1e-5, "max_position_embeddings": 8192, "mup_attn_multiplier": 1.0,
    "mup_embedding_multiplier": 10.0, "mup_use_scaling": True, "mup_width_multiplier": 8.0, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "rope_embedding_base": 1000000, "rope_position_scale": 1.0,
    "vocab_size": 100352,
}  # fmt: skip
JAIS = {
    "activation_function": "swiglu", "layer_norm_epsilon": 1e-5, "n_embd": 5120, "n_head": 40, "n_inner": 13653,
    "n_layer": 40, "n_positions": 2048, "position_embedding_type": "alibi", "scale_attn_weights": True,
    "vocab_size": 84992,
}  # fmt: skip


def resolve(name: str, config: dict[str, Any], max_model_len: int | None = None) -> ModelSpec:
    return registry.resolve(ConfigReader(config | {"architectures": [name]}, max_model_len)).spec


def attention_of(spec: ModelSpec, index: int = 0) -> Attention:
    mixer = spec.decoder.layers[index].mixer
    assert isinstance(mixer, Attention)
    return mixer


def rope_of(spec: ModelSpec) -> Rope:
    positions = attention_of(spec).positions
    assert isinstance(positions, Rope)
    return positions


def test_aquila2_34b_shares_kv_heads() -> None:
    config = LLAMA_LIKE | {"hidden_size": 6144, "num_attention_heads": 48, "num_key_value_heads": 8}
    attention = attention_of(resolve("AquilaForCausalLM", config))
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (48, 8, 128)


def test_internlm_may_hold_theta_in_rotary() -> None:
    config = LLAMA_LIKE | {"bias": True, "rotary": {"base": 50000, "type": "dynamic"}}
    assert rope_of(resolve("InternLMForCausalLM", config)) == Rope(128, 50000.0)
    assert rope_of(resolve("InternLMForCausalLM", LLAMA_LIKE)) == Rope(128, 10000.0)


@pytest.mark.parametrize(("bias", "num_extras"), [(True, 5), (False, 1), (None, 5)])
def test_internlm_demands_the_biases_that_it_announces(bias: bool | None, num_extras: int) -> None:
    config = LLAMA_LIKE | {"architectures": ["InternLMForCausalLM"], "bias": bias}
    assert len(registry.resolve(ConfigReader(config)).extras) == num_extras


def test_internlm2_leaves_theta_alone_up_to_its_length() -> None:
    config = LLAMA_LIKE | {
        "max_position_embeddings": 32768, "num_key_value_heads": 8, "rope_theta": 1e6, "bias": False,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }  # fmt: skip
    for max_model_len in (None, 4096, 32768):
        spec = resolve("InternLM2ForCausalLM", config, max_model_len)
        assert (rope_of(spec), spec.max_model_len) == (Rope(128, 1e6), max_model_len or 32768)
    assert rope_of(resolve("InternLM2ForCausalLM", config, 65536)).theta > 2e6


def test_glm4_multiplies_theta() -> None:
    config = CHATGLM | {
        "layernorm_epsilon": 1.5625e-07, "num_layers": 40, "padded_vocab_size": 151552, "rope_ratio": 500,
        "seq_length": 131072,
    }  # fmt: skip
    spec = resolve("ChatGLMModel", config)
    assert (rope_of(spec), spec.max_model_len, spec.vocab_size) == (Rope(64, 5e6), 131072, 151552)
    assert spec.decoder.norm == Norm("rms", 1.5625e-07)
    assert len(spec.decoder.layers) == 40


@pytest.mark.parametrize(("flag", "form"), [(False, "sequential"), (True, "normed")])
def test_chatglm_may_add_to_the_normed_stream(flag: bool, form: str) -> None:
    spec = resolve("ChatGLMModel", CHATGLM | {"apply_residual_connection_post_layernorm": flag})
    assert {layer.residual for layer in spec.decoder.layers} == {form}


def test_chatglm_may_have_other_norms_and_more_biases() -> None:
    config = CHATGLM | {"architectures": ["ChatGLMModel"], "rmsnorm": False, "add_bias_linear": True}
    resolved = registry.resolve(ConfigReader(config))
    assert resolved.spec.decoder.norm.kind == "layer"
    assert {"norm.bias", "layers.*.norm2.bias", "layers.*.mixer.o.bias", "layers.*.mlp.down.bias"} <= set(
        resolved.extras
    )


@pytest.mark.parametrize("key", ["multi_query_attention", "post_layer_norm"])
def test_chatglm_without_what_all_have_is_refused(key: str) -> None:
    with pytest.raises(CheckpointError, match=f"{key} of config.json is False"):
        resolve("ChatGLMModel", CHATGLM | {key: False})


@pytest.mark.parametrize("name", ["BaiChuanForCausalLM", "BaichuanForCausalLM"])
def test_baichuan_7b_rotates_by_either_name(name: str) -> None:
    spec = resolve(name, LLAMA_LIKE | {"model_max_length": 4096})
    assert (rope_of(spec), spec.max_model_len) == (Rope(128, 10000.0), 4096)


def test_baichuan_13b_has_linear_biases() -> None:
    config = LLAMA_LIKE | {
        "hidden_size": 5120,
        "num_attention_heads": 40,
        "num_hidden_layers": 40,
        "model_max_length": 4096,
    }
    del config["max_position_embeddings"]
    spec = resolve("BaichuanForCausalLM", config)
    positions = attention_of(spec).positions
    assert isinstance(positions, Alibi) and len(positions.slopes) == 40
    assert spec.max_model_len == 4096


@pytest.mark.parametrize(("vocab_size", "how"), [(125696, " (normalize rows)"), (64000, "")])
def test_only_baichuan_2_normalizes_its_head(vocab_size: int, how: str) -> None:
    config = LLAMA_LIKE | {"architectures": ["BaichuanForCausalLM"], "vocab_size": vocab_size}
    rules = [rule for rule in registry.resolve(ConfigReader(config)).rules if rule.targets == ("head.weight",)]
    assert str(rules[0]).endswith(f"head.weight{how}")


def test_decilm_7b_keeps_as_many_kv_heads_as_each_layer_has() -> None:
    counts = [4] * 5 + [2] * 20 + [1] * 7
    spec = resolve("DeciLMForCausalLM", LLAMA_LIKE | {"num_key_value_heads_per_layer": counts})
    assert [attention_of(spec, i).num_kv_heads for i in range(32)] == counts


def nemotron(*blocks: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    return LLAMA_LIKE | {
        "hidden_size": 8192, "num_attention_heads": 64, "num_hidden_layers": len(blocks), "intermediate_size": None,
        "num_key_value_heads": None, "block_configs": [{"attention": a, "ffn": f} for a, f in blocks],
    }  # fmt: skip


def test_nemotron_has_layers_as_its_search_left_them() -> None:
    nothing = {"no_op": True, "replace_with_linear": False, "n_heads_in_group": None, "ffn_mult": None}
    config = nemotron(
        ({"no_op": False, "n_heads_in_group": 8, "window_length": None}, {"no_op": False, "ffn_mult": 5.25}),
        (nothing, {"no_op": False, "ffn_mult": 1.3125}),
        ({"n_heads_in_group": 16}, nothing),
        (nothing, {"intermediate_size": 5376}),
    )
    layers = resolve("DeciLMForCausalLM", config).decoder.layers
    assert [layer.mixer and layer.mixer.num_kv_heads for layer in layers] == [8, None, 4, None]
    assert [layer.mlp and layer.mlp.size for layer in layers] == [28672, 7168, None, 5376]


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ({"replace_with_linear": True}, "replace_with_linear of attention of block_configs[0] of config.json is True"),
        ({"n_heads_in_group": 7}, "n_heads_in_group of attention of block_configs[0] of config.json is 7"),
        ({}, "attention of block_configs[0] of config.json has no n_heads_in_group"),
    ],
    ids=["linear", "uneven", "missing"],
)
def test_a_block_of_nemotron_that_cannot_be_is_named(attention: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve("DeciLMForCausalLM", nemotron((attention, {"ffn_mult": 1.0})))
    assert message in str(caught.value)


def test_layers_with_other_numbers_of_kv_heads_have_caches_of_their_own(tmp_path: Path) -> None:
    folder = materialize(read_golden("DeciLMForCausalLM"), tmp_path)
    model = load_model(
        folder, json.loads((folder / "config.json").read_text()), dtype=torch.float32, device=torch.device("cpu"),
        progress=False,
    )  # fmt: skip
    assert model.state_layouts == (PagedKv(2, 32), PagedKv(1, 32))


def test_telechat2_32k_has_the_theta_that_it_was_trained_to() -> None:
    config = {
        "base_seqlen": 8192, "ffn_hidden_size": 20480, "hidden_size": 8192, "layer_norm_epsilon": 1e-5, "n_head": 64,
        "n_layer": 64, "num_key_value_heads": 8, "seq_length": 32768, "training_seqlen": 32768, "vocab_size": 131072,
    }  # fmt: skip
    spec = resolve("TeleChat2ForCausalLM", config)
    assert rope_of(spec).theta == pytest.approx(10000 * 7 ** (128 / 126))
    assert (attention_of(spec).num_kv_heads, spec.max_model_len) == (8, 32768)
    assert rope_of(resolve("TeleChat2ForCausalLM", config | {"training_seqlen": 8192})).theta == 10000.0


def test_qwen_72b_has_theta_and_length_under_names_of_its_own() -> None:
    config = {
        "hidden_size": 8192, "intermediate_size": 49152, "kv_channels": 128, "layer_norm_epsilon": 1e-6,
        "max_position_embeddings": 32768, "no_bias": True, "num_attention_heads": 64, "num_hidden_layers": 80,
        "rotary_emb_base": 1000000, "rotary_pct": 1.0, "seq_length": 8192, "tie_word_embeddings": False,
        "vocab_size": 152064,
    }  # fmt: skip
    spec = resolve("QWenLMHeadModel", config)
    assert (rope_of(spec), spec.max_model_len) == (Rope(128, 1e6), 8192)
    assert spec.decoder.layers[0].mlp.size == 24576


def test_minicpm_2b_is_tied_without_saying_so() -> None:
    config = LLAMA_LIKE | {
        "hidden_size": 2304, "num_attention_heads": 36, "num_hidden_layers": 40, "num_key_value_heads": 36,
        "dim_model_base": 256, "scale_depth": 1.4, "scale_emb": 12,
    }  # fmt: skip
    del config["tie_word_embeddings"]
    decoder = resolve("MiniCPMForCausalLM", config).decoder
    assert (decoder.tied, decoder.embed_scale, decoder.logit_scale) == (True, 12.0, 256 / 2304)
    assert decoder.layers[39].residual_scale == pytest.approx(1.4 / 40**0.5)


def test_minicpm4_has_its_longrope_where_there_is_more_than_it_was_trained_on() -> None:
    scaling = {
        "rope_type": "longrope", "short_factor": [1.0] * 64, "long_factor": [4.0] * 64,
        "original_max_position_embeddings": 32768,
    }  # fmt: skip
    config = LLAMA_LIKE | {"max_position_embeddings": 32768, "rope_scaling": scaling, "sparse_config": {"topk": 64}}
    spec = resolve("MiniCPMForCausalLM", config)
    assert rope_of(spec).scaling == LongRopeScaling((1.0,) * 64, 1.0, (4.0,) * 64, 1.0, 32768)
    assert spec.long_from is None
    longer = resolve("MiniCPMForCausalLM", config | {"max_position_embeddings": 131072})
    assert longer.long_from == 32768
    assert rope_of(longer).scaling.long.magnitude > 1


def test_minicpm_s_has_a_bounded_activation() -> None:
    config = LLAMA_LIKE | {"hidden_act": "fatrelu", "hidden_act_param": 0.01}
    mlp = resolve("MiniCPMForCausalLM", config).decoder.layers[0].mlp
    assert (mlp.act, mlp.act_bound) == ("fatrelu", 0.01)


def test_solar_pro_skips_from_the_last_start_before_each_end() -> None:
    config = LLAMA_LIKE | {
        "num_hidden_layers": 64, "bskcn_1": [12, 20, 32, 44], "bskcn_2": [20, 32], "bskcn_3": [16, 24, 36, 48],
        "bskcn_4": [28, 40], "bskcn_tv": [0.9, 0.8], "sliding_window": 2047,
    }  # fmt: skip
    spec = resolve("SolarForCausalLM", config)
    pairs = [(12, 16), (20, 24), (32, 36), (44, 48), (20, 28), (32, 40)]
    assert spec.decoder.skips == tuple(Skip(start, into, 0.8) for start, into in pairs)
    assert attention_of(spec).window is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"bskcn_3": [0]},
            r"bskcn_3 of config.json is \[0\]; it must be layers at or after the first of bskcn_1, \[1\]",
        ),
        ({"bskcn_4": [99]}, "bskcn_4 of config.json is .*; it must be a list of layers below 32"),
        ({"bskcn_tv": 0.8}, "bskcn_tv of config.json is 0.8; it must be two numbers"),
    ],
)
def test_skips_that_cannot_be_are_named(change: dict[str, Any], message: str) -> None:
    skips = {"bskcn_1": [1], "bskcn_2": [1], "bskcn_3": [2], "bskcn_4": [3], "bskcn_tv": [0.9, 0.8]}
    with pytest.raises(CheckpointError, match=message):
        resolve("SolarForCausalLM", LLAMA_LIKE | skips | change)


@pytest.mark.parametrize(
    ("keys", "scale", "embed_scale", "logit_scale"),
    [
        ({"embeddings_scale": 14.6, "width_scale": 0.11, "scale_qk_dot_by_d": True}, 1 / 128, 14.6, 0.11),
        ({"mup_embeddings_scale": 14.6, "mup_output_alpha": 2.22, "mup_width_scale": 0.5,
          "mup_scale_qk_dot_by_d": True}, 1 / 128, 14.6, 1.11),
        ({}, 128**-0.5, 1.0, 1.0),
    ],
    ids=["jais-13b", "jais-30b", "plain"],
)  # fmt: skip
def test_jais_has_its_scales_by_either_name(
    keys: dict[str, Any], scale: float, embed_scale: float, logit_scale: float
) -> None:
    spec = resolve("JAISLMHeadModel", JAIS | keys)
    assert attention_of(spec).scale == scale
    assert (spec.decoder.embed_scale, spec.decoder.tied) == (embed_scale, True)
    assert spec.decoder.logit_scale == pytest.approx(logit_scale)


@pytest.mark.parametrize(
    ("key", "value"),
    [("position_embedding_type", "learned"), ("activation_function", "gelu"), ("alibi_scaling", {"factor": 2.0})],
)
def test_a_jais_like_none_that_was_released_is_refused(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=f"{key} of config.json is"):
        resolve("JAISLMHeadModel", JAIS | {key: value})


def test_phi_3_small_is_dense_in_every_second_layer() -> None:
    decoder = resolve("Phi3SmallForCausalLM", PHI3SMALL).decoder
    kinds = [type(layer.mixer) for layer in decoder.layers]
    assert kinds == [BlockSparseAttention, Attention] * 16
    dense = decoder.layers[1].mixer
    assert decoder.layers[0].mixer == BlockSparseAttention(dense, 64, 16, 8, 1)
    assert (dense.scale, dense.positions) == (1 / 128, Rope(128, 1e6))
    assert (decoder.embed_scale, decoder.logit_scale, decoder.tied) == (10.0, 1 / 8, True)
    assert (decoder.layers[0].mlp.act, decoder.layers[0].mlp.act_bound) == ("gegelu", 20.0)


def test_heads_of_phi_3_small_may_see_the_same_blocks() -> None:
    decoder = resolve("Phi3SmallForCausalLM", PHI3SMALL | {"blocksparse_homo_head_pattern": True}).decoder
    assert decoder.layers[0].mixer.head_step == 0


@pytest.mark.parametrize(("max_model_len", "long_from"), [(None, 8192), (8192, None)])
def test_phi_3_small_128k_names_the_magnitudes(max_model_len: int | None, long_from: int | None) -> None:
    scaling = {
        "type": "longrope", "short_factor": [1.5] * 64, "long_factor": [4.0] * 64, "short_mscale": 1.0,
        "long_mscale": 1.19, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = PHI3SMALL | {"max_position_embeddings": 131072, "rope_scaling": scaling}
    spec = resolve("Phi3SmallForCausalLM", config, max_model_len)
    scaling = LongRopeScaling((1.5,) * 64, 1.0, (4.0,) * 64, 1.19, 8192)
    assert attention_of(spec, 1).positions == Rope(128, 1e6, scaling)
    assert spec.long_from == long_from


def test_phi_3_small_may_stretch_positions() -> None:
    attention = attention_of(resolve("Phi3SmallForCausalLM", PHI3SMALL | {"rope_position_scale": 2.0}), 1)
    assert attention.positions == Rope(128, 1e6, LinearScaling(2.0))


def test_orion_14b_has_layer_norm() -> None:
    assert resolve("OrionForCausalLM", LLAMA_LIKE | {"rms_norm_eps": 1e-5}).decoder.norm == Norm("layer", 1e-5)


def test_gritlm_7b_has_the_window_of_mistral() -> None:
    assert attention_of(resolve("GritLM", LLAMA_LIKE | {"sliding_window": 4096})).window == 4096
