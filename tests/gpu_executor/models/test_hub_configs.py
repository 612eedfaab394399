"""What released checkpoints' config.json files say is understood: nulls, missing keys, and names of earlier releases.

And what transformers saves for a model describes the same model as the file that it was made from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from forebay.errors import CheckpointError
from gpu_executor.models import registry
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.spec import Alibi, Attention, LongRopeScaling, ModelSpec, Rope
from tests.gpu_executor.models.checkpoints import Case, all_cases


def spec_of(architecture: str, max_model_len: int | None = None, **config: Any) -> ModelSpec:
    return registry.resolve(ConfigReader({"architectures": [architecture], **config}, max_model_len)).spec


def attention_of(spec: ModelSpec, index: int = 0) -> Attention:
    mixer = spec.decoder.layers[index].mixer
    assert isinstance(mixer, Attention)
    return mixer


@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_what_transformers_saves_is_the_same_model(case: Case, tmp_path: Path) -> None:
    config_class = getattr(transformers, case.class_name or case.architecture).config_class
    config_class.from_dict(case.config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text()) | {"architectures": [case.architecture]}
    ours = spec_of(case.architecture, case.max_model_len, **case.config)
    assert registry.resolve(ConfigReader(saved, case.max_model_len)).spec == ours


def test_gemma_2b_has_wide_heads_and_the_tanh_form_of_gelu() -> None:
    spec = spec_of(
        "GemmaForCausalLM", vocab_size=256000, hidden_size=2048, intermediate_size=16384, num_hidden_layers=18,
        num_attention_heads=8, num_key_value_heads=1, head_dim=256, hidden_act="gelu", hidden_activation=None,
        max_position_embeddings=8192, rms_norm_eps=1e-6, rope_theta=10000.0, rope_scaling=None, attention_bias=False,
    )  # fmt: skip
    assert attention_of(spec).head_dim == 256
    assert spec.decoder.layers[0].mlp.act == "gelu_tanh"
    assert spec.decoder.tied and spec.decoder.embed_scale == pytest.approx(2048**0.5)


def test_command_r_takes_the_tokens_that_its_tokenizer_names() -> None:
    keys = {
        "vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528, "num_hidden_layers": 2, "num_attention_heads": 64,
        "num_key_value_heads": 64, "max_position_embeddings": 8192, "rope_theta": 8000000.0, "layer_norm_eps": 1e-5,
        "use_qk_norm": False, "logit_scale": 0.0625, "attention_bias": False,
    }  # fmt: skip
    assert spec_of("CohereForCausalLM", **keys, model_max_length=131072).max_model_len == 131072
    assert spec_of("CohereForCausalLM", **keys).max_model_len == 8192
    without_theta = {key: value for key, value in keys.items() if key != "rope_theta"}
    assert attention_of(spec_of("CohereForCausalLM", **without_theta)).positions == Rope(128, 500000.0)


PHI_3_MINI_128K = {
    "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 2, "num_attention_heads": 32,
    "num_key_value_heads": 32, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "sliding_window": 262144, "attention_bias": False, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["su", "yarn", "longrope"])
def test_phi_3_has_longrope_by_any_of_its_names(kind: str) -> None:
    scaling = {"type": kind, "short_factor": [1.05] * 48, "long_factor": [1.0 + i for i in range(48)]}
    long = spec_of("Phi3ForCausalLM", **PHI_3_MINI_128K, rope_scaling=scaling)
    short = spec_of("Phi3ForCausalLM", 4096, **PHI_3_MINI_128K, rope_scaling=scaling)
    magnitude = pytest.approx(1.190238)
    expected = LongRopeScaling((1.05,) * 48, magnitude, tuple(scaling["long_factor"]), magnitude, 4096)
    for spec in (long, short):
        assert attention_of(spec).positions == Rope(96, 10000.0, expected)
    assert (long.max_model_len, long.long_from, short.long_from) == (131072, 4096, None)


def test_the_first_releases_of_stablelm_have_names_of_their_own() -> None:
    spec = spec_of(
        "StableLMEpochForCausalLM", vocab_size=50304, hidden_size=2560, intermediate_size=6912, num_hidden_layers=2,
        num_attention_heads=32, num_heads=32, num_key_value_heads=32, max_position_embeddings=4096, norm_eps=1e-6, rope_pct=0.25,
        rope_theta=10000, rotary_scaling_factor=1.0, tie_word_embeddings=False,
    )  # fmt: skip
    assert attention_of(spec).positions == Rope(20, 10000.0)
    assert spec.decoder.norm.eps == 1e-6


def test_pythia_rotates_a_quarter_of_each_head() -> None:
    spec = spec_of(
        "GPTNeoXForCausalLM", vocab_size=50304, hidden_size=512, intermediate_size=2048, num_hidden_layers=6,
        num_attention_heads=8, hidden_act="gelu", layer_norm_eps=1e-5, max_position_embeddings=2048, rotary_emb_base=10000,
        rotary_pct=0.25, use_parallel_residual=True, tie_word_embeddings=False,
    )  # fmt: skip
    assert attention_of(spec).positions == Rope(16, 10000.0)


FALCON_RW = {"vocab_size": 65024, "n_layer": 2, "layer_norm_epsilon": 1e-5, "alibi": False, "bias": False}


def test_the_first_releases_of_falcon_have_names_of_their_own() -> None:
    small = spec_of(
        "RWForCausalLM", **FALCON_RW, hidden_size=4544, n_head=71, multi_query=True, parallel_attn=True,
        model_type="RefinedWebModel",
    )  # fmt: skip
    large = spec_of(
        "RWForCausalLM",
        **FALCON_RW,
        hidden_size=8192,
        n_head=128,
        n_head_kv=8,
        parallel_attn=True,
        model_type="RefinedWeb",
    )
    assert (attention_of(small).num_heads, attention_of(small).num_kv_heads) == (71, 1)
    assert (attention_of(large).num_heads, attention_of(large).num_kv_heads) == (128, 8)
    assert small.max_model_len == 2048
    resolved = registry.resolve(
        ConfigReader(
            {"architectures": ["RWForCausalLM"], **FALCON_RW, "hidden_size": 8192, "n_head": 128, "n_head_kv": 8}
        )
    )
    assert "layers.*.norm2.weight" in resolved.extras  # the 40B has two norms


def test_falcon_rw_1b_has_its_slopes_in_bfloat16_divided_as_the_scores_are() -> None:
    spec = spec_of(
        "FalconForCausalLM", vocab_size=50304, hidden_size=2048, num_hidden_layers=2, num_attention_heads=32, alibi=True,
        bias=True, multi_query=False, parallel_attn=False, new_decoder_architecture=False, layer_norm_epsilon=1e-5,
        apply_residual_connection_post_layernorm=False,
    )  # fmt: skip
    positions = attention_of(spec).positions
    assert isinstance(positions, Alibi)
    assert positions.slopes[0] == 0.83984375 / 8  # 2^-0.25 with eight bits


def test_bloom_560m_reads_the_older_names() -> None:
    spec = spec_of(
        "BloomForCausalLM", n_embed=1024, n_layer=2, num_attention_heads=16, vocab_size=250880, layer_norm_epsilon=1e-5,
        apply_residual_connection_post_layernorm=False, offset_alibi=100, seq_length=2048, pretraining_tp=1,
    )  # fmt: skip
    assert spec.decoder.hidden_size == 1024
    assert spec.max_model_len == 2048


def test_storywriter_has_steeper_slopes_and_clamps() -> None:
    attn_config = {
        "alibi": True, "alibi_bias_max": 16, "attn_impl": "torch", "attn_pdrop": 0, "attn_type": "multihead_attention",
        "attn_uses_sequence_id": False, "clip_qkv": 6, "prefix_lm": False, "qk_ln": False, "softmax_scale": None,
    }  # fmt: skip
    spec = spec_of(
        "MPTForCausalLM", d_model=4096, n_layers=2, n_heads=32, expansion_ratio=4, max_seq_len=65536, vocab_size=50432,
        attn_config=attn_config, no_bias=True, norm_type="low_precision_layernorm", logit_scale=None,
    )  # fmt: skip
    attention = attention_of(spec)
    assert attention.clip == 6
    assert isinstance(attention.positions, Alibi) and attention.positions.slopes[:2] == (2**-0.5, 2**-1.0)
    assert spec.max_model_len == 65536


def test_opt_350m_projects_a_narrow_embedding_and_norms_behind() -> None:
    spec = spec_of(
        "OPTForCausalLM", vocab_size=50272, hidden_size=1024, word_embed_proj_dim=512, ffn_dim=4096, num_hidden_layers=2,
        num_attention_heads=16, max_position_embeddings=2048, do_layer_norm_before=False, activation_function="relu",
        _remove_final_layer_norm=False,
    )  # fmt: skip
    assert spec.decoder.embed_size == 512
    assert spec.decoder.layers[0].residual == "post_norm"


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        ("Gemma2ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention of config.json is True"),
        ("PhiForCausalLM", {"partial_rotary_factor": 1.5}, "partial_rotary_factor of config.json is 1.5; it must be at most 1"),
        ("NemotronForCausalLM", {"hidden_act": "squared"}, "hidden_act of config.json is 'squared'; it must be one of"),
        ("Cohere2ForCausalLM", {"layer_types": ["linear"] * 2}, "layer_types of config.json is"),
        ("GPTJForCausalLM", {"n_embd": 64, "n_head": 4, "n_layer": 2, "rotary_dim": 64}, "rotary_dim of config.json is 64"),
        ("OPTForCausalLM", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm of config.json is True"),
        ("FalconForCausalLM", {"new_decoder_architecture": True, "num_kv_heads": 3}, "num_kv_heads of config.json is 3"),
        ("MPTForCausalLM", {"attn_config": {"prefix_lm": True}}, "prefix_lm of attn_config of config.json is True"),
        ("MPTForCausalLM", {"attn_config": {"qk_ln": True, "clip_qkv": 6}}, "qk_ln of attn_config of config.json is True"),
        ("MPTForCausalLM", {"logit_scale": "sqrt"}, "logit_scale of config.json is 'sqrt'"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_served_is_named(architecture: str, config: dict[str, Any], message: str) -> None:
    keys = {
        "vocab_size": 199, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, "d_model": 64, "n_heads": 4, "n_layers": 2,
    }  # fmt: skip
    with pytest.raises(CheckpointError) as caught:
        spec_of(architecture, **keys | config)
    assert message in str(caught.value)
