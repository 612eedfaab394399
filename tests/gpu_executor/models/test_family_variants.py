"""Families that transformers lacks: as a changed Llama of transformers, and in the other layouts of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from gpu_executor.models.decoder import Decoder
from gpu_executor.models.loader import load_model
from tests.golden.materialize import materialize, read_golden
from tests.gpu_executor.models.checkpoints import Case, case_of, tiny_model
from tests.gpu_executor.models.paged import run_in_chunks

PROMPT = [5, 100, 7, 44, 198, 3, 3, 77, 120, 61, 9, 150]


def load(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Decoder:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return load_model(folder, config, dtype=torch.float32, device=torch.device("cpu"), progress=False)


def assert_equal_logits(
    folder: Path, reference: transformers.PreTrainedModel, config: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    with torch.no_grad():
        wanted = reference(torch.tensor([PROMPT])).logits[0]
    got = run_in_chunks(load(folder, config, tensors), PROMPT, 5)
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_exaone_3_5_is_llama_with_a_tied_head_and_other_names(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    llama = case_of("llama").config | {"tie_word_embeddings": True, "rope_scaling": scaling, "head_dim": 10}
    reference = tiny_model(Case("exaone", "LlamaForCausalLM", llama))
    names = {
        "model.embed_tokens": "transformer.wte", "model.norm": "transformer.ln_f", "model.layers": "transformer.h",
        "input_layernorm": "ln_1", "post_attention_layernorm": "ln_2", "self_attn.o_proj": "attn.attention.out_proj",
        "self_attn": "attn.attention", "gate_proj": "c_fc_0", "up_proj": "c_fc_1", "down_proj": "c_proj",
    }  # fmt: skip
    tensors = {}
    for name, tensor in reference.state_dict().items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        tensors[name] = tensor
    del tensors["lm_head.weight"]
    config = {
        key: value for key, value in llama.items() if key not in ("num_hidden_layers", "hidden_act", "rms_norm_eps")
    }
    config |= {
        "architectures": ["ExaoneForCausalLM"], "num_layers": 3, "activation_function": "silu",
        "layer_norm_epsilon": llama["rms_norm_eps"],
    }  # fmt: skip
    assert_equal_logits(tmp_path, reference, config, tensors)


def test_minicpm_is_llama_with_scaled_weights_and_another_activation(tmp_path: Path) -> None:
    case = case_of("llama")
    reference = tiny_model(case)
    tensors = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    keys = {
        "scale_emb": 3.0,
        "scale_depth": 1.4,
        "dim_model_base": 24,
        "hidden_act": "fatrelu",
        "hidden_act_param": 0.1,
    }
    with torch.no_grad():
        reference.model.embed_tokens.weight.mul_(3.0)
        reference.lm_head.weight.mul_(24 / 48)
        for layer in reference.model.layers:
            layer.mlp.act_fn = torch.nn.Threshold(0.1, 0.0)
            layer.mlp.down_proj.weight.mul_(1.4 / 3**0.5)
            layer.self_attn.o_proj.weight.mul_(1.4 / 3**0.5)
    assert_equal_logits(tmp_path, reference, case.config | keys | {"architectures": ["MiniCPMForCausalLM"]}, tensors)


def test_two_skips_of_solar_may_end_at_one_layer(tmp_path: Path) -> None:
    case = case_of("llama")
    reference = tiny_model(case)
    tensors = reference.state_dict()
    keys = {"bskcn_1": [0], "bskcn_2": [1], "bskcn_3": [2], "bskcn_4": [2], "bskcn_tv": [0.9, 0.3]}
    streams: list[torch.Tensor] = []

    def mix(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        stream = args[0]
        if len(streams) == 2:
            for start in streams:
                stream = 0.3 * start + 0.7 * stream
        streams.append(stream)
        return stream, *args[1:]

    for layer in reference.model.layers:
        layer.register_forward_pre_hook(mix)
    assert_equal_logits(tmp_path, reference, case.config | keys | {"architectures": ["SolarForCausalLM"]}, tensors)


# What released files hold beyond what the goldens have: buffers of old versions, and heads that are tied.
LEFTOVERS = {
    "AquilaForCausalLM": ["model.layers.0.self_attn.rotary_emb.inv_freq"],
    "BaiChuanForCausalLM": ["model.layers.0.self_attn.rotary_emb.inv_freq"],
    "ChatGLMModel": ["transformer.rotary_pos_emb.inv_freq"],
    "ExaoneForCausalLM": ["transformer.h.0.attn.attention.rotary.inv_freq"],
    "InternLM2ForCausalLM": ["model.layers.0.attention.rotary_emb.inv_freq"],
    "JAISLMHeadModel": ["transformer.relative_pe.slopes", "transformer.h.0.attn.bias", "lm_head.weight"],
    "MiniCPMForCausalLM": ["lm_head.weight"],
    "Phi3SmallForCausalLM": ["lm_head.weight"],
    "QWenLMHeadModel": ["transformer.rotary_emb.inv_freq", "transformer.h.0.attn.masked_bias"],
}


@pytest.mark.parametrize("name", LEFTOVERS)
def test_leftovers_of_released_files_change_nothing(tmp_path: Path, name: str) -> None:
    folder = materialize(read_golden(name), tmp_path)
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    plain = run_in_chunks(load(folder, config, tensors), PROMPT, 5)
    leftovers = {leftover: torch.full((3,), torch.nan) for leftover in LEFTOVERS[name]}
    assert torch.equal(run_in_chunks(load(folder, config, tensors | leftovers), PROMPT, 5), plain)


@pytest.mark.parametrize("name", LEFTOVERS)
def test_a_file_saved_from_the_bare_decoder_is_the_same_model(tmp_path: Path, name: str) -> None:
    folder = materialize(read_golden(name), tmp_path)
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    plain = run_in_chunks(load(folder, config, tensors), PROMPT, 5)
    bare = {key.removeprefix("model.").removeprefix("transformer."): tensor for key, tensor in tensors.items()}
    assert len(bare) == len(tensors) and bare.keys() != tensors.keys()
    assert torch.equal(run_in_chunks(load(folder, config, bare), PROMPT, 5), plain)
