"""Baichuan (Yang et al., 2023): Llama with one fused projection; 7B rotates, 13B has linear biases (ALiBi)."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from gpu_executor.models.alibi import make_alibi
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, LLAMA_RULES, read_attention, read_model
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, change, split_qkv
from gpu_executor.models.spec import Attention

_VOCAB_OF_SECOND = 125696  # the one thing in config.json that tells Baichuan 2 from Baichuan
_HIDDEN_OF_7B = 4096


def _rules(attention: Attention, normalized_head: bool) -> tuple[Rule, ...]:
    packed = split_qkv(
        r"(?:model\.)?layers\.(\d+)\.self_attn\.W_pack\.(weight|bias)", r"layers.\1.mixer.{}.\2", attention
    )
    head = (change(r"lm_head\.weight", "head.weight", normalize_rows),) if normalized_head else ()
    return (packed, *head, *LLAMA_RULES)


def normalize_rows(weight: torch.Tensor) -> torch.Tensor:
    """(V, D) -> (V, D), rows of length 1: Baichuan 2 normalizes its head at each step."""
    return F.normalize(weight.float())


@architecture("BaiChuanForCausalLM", examples="Baichuan 7B")
def baichuan_7b(config: ConfigReader, architecture: str) -> Resolved:
    return _resolve(config, architecture, read_attention(config))


@architecture("BaichuanForCausalLM", examples="Baichuan2 7B, Baichuan2 13B, Baichuan 13B")
def baichuan(config: ConfigReader, architecture: str) -> Resolved:
    # One name for two models, and no key that says so. Of the released configs only that of the 7B has a number of
    # positions; vLLM goes by the width.
    if config.has("max_position_embeddings") or config.integer("hidden_size") == _HIDDEN_OF_7B:
        return baichuan_7b(config, architecture)
    attention = dataclasses.replace(read_attention(config), positions=make_alibi(config.integer("num_attention_heads")))
    return _resolve(config, architecture, attention)


def _resolve(config: ConfigReader, architecture: str, attention: Attention) -> Resolved:
    longest = config.integer("max_position_embeddings", "model_max_length", default=4096)
    mixers = [attention] * config.integer("num_hidden_layers")
    spec = read_model(config.updated({"max_position_embeddings": longest}), architecture, mixers)
    return Resolved(spec, _rules(attention, spec.vocab_size == _VOCAB_OF_SECOND), GATE)
