"""What MosaicML's own code reads of an MPT config and transformers' class does not, against a few lines of plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.gpu_executor.models.checkpoints import Case, write
from tests.gpu_executor.models.paged import run_in_chunks
from tests.gpu_executor.models.test_decoder import assert_close, load

D, H, V, L, LAYERS = 48, 6, 61, 23, 2
Tensors = dict[str, torch.Tensor]


def config_of(*, kv_heads: int, bias: bool, **config: Any) -> dict[str, Any]:
    attn_config = {
        "alibi": config.pop("alibi"),
        "alibi_bias_max": 16,
        "qk_ln": config.pop("qk_ln"),
        "kv_n_heads": kv_heads,
    }
    return {
        "model_type": "mpt", "d_model": D, "n_heads": H, "n_layers": LAYERS, "vocab_size": V, "max_seq_len": 64,
        "no_bias": not bias, "expansion_ratio": 2, "attn_config": attn_config, **config,
    }  # fmt: skip


def tensors_of(config: dict[str, Any]) -> Tensors:
    options = config["attn_config"]
    torch.manual_seed(3)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(shape) * shape[-1] ** -0.5

    kv_size = options["kv_n_heads"] * (D // H)
    tensors = {"transformer.wte.weight": torch.randn(V, D)}
    if not options["alibi"]:
        tensors["transformer.wpe.weight"] = torch.randn(64, D)
    norms = ["transformer.norm_f"]
    for i in range(LAYERS):
        block = f"transformer.blocks.{i}."
        norms += [f"{block}norm_1", f"{block}norm_2"]
        sizes = {
            "attn.Wqkv": (D + 2 * kv_size, D),
            "attn.out_proj": (D, D),
            "ffn.up_proj": (2 * D, D),
            "ffn.down_proj": (D, 2 * D),
        }
        for name, shape in sizes.items():
            tensors[f"{block}{name}.weight"] = matrix(*shape)
            if not config["no_bias"]:
                tensors[f"{block}{name}.bias"] = torch.randn(shape[0]) * 0.2
        if options["qk_ln"]:
            tensors |= {f"{block}attn.q_ln.weight": 1 + matrix(D), f"{block}attn.k_ln.weight": 1 + matrix(kv_size)}
    for norm in norms:
        tensors[f"{norm}.weight"] = 1 + torch.randn(D) * 0.2
        if not config["no_bias"]:
            tensors[f"{norm}.bias"] = torch.randn(D) * 0.2
    return tensors


def logits_of(config: dict[str, Any], t: Tensors, token_ids: list[int]) -> torch.Tensor:
    """(n, V)."""
    options, head_dim = config["attn_config"], D // H
    rms = config["norm_type"].endswith("rmsnorm")

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = t[f"{name}.weight"], t.get(f"{name}.bias")
        return F.rms_norm(x, weight.shape, weight, 1e-5) if rms else F.layer_norm(x, weight.shape, weight, bias, 1e-5)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, t[f"{name}.weight"], t.get(f"{name}.bias"))

    n = len(token_ids)
    x = t["transformer.wte.weight"][token_ids]
    bias = torch.full((n, n), -torch.inf).triu(1).expand(H, n, n)
    if options["alibi"]:
        steep = torch.tensor(
            [2.0 ** -(16 / 8 * i) for i in (2, 4, 6, 8, 1, 3)]
        )  # eight heads' slopes, the even ones first
        bias = bias + steep[:, None, None] * (torch.arange(n)[None] - torch.arange(n)[:, None])
    else:
        x = x + t["transformer.wpe.weight"][:n]
    kv_size = options["kv_n_heads"] * head_dim
    for i in range(LAYERS):
        block = f"transformer.blocks.{i}."
        q, k, v = linear(norm(x, f"{block}norm_1"), f"{block}attn.Wqkv").split((D, kv_size, kv_size), -1)
        if options["qk_ln"]:
            q, k = norm(q, f"{block}attn.q_ln"), norm(k, f"{block}attn.k_ln")
        q, k, v = (heads.view(n, -1, head_dim).transpose(0, 1) for heads in (q, k, v))
        k, v = (heads.repeat_interleave(H // len(heads), 0) for heads in (k, v))
        probabilities = (q @ k.mT * head_dim**-0.5 + bias).softmax(-1)
        x = x + linear((probabilities @ v).transpose(0, 1).flatten(1), f"{block}attn.out_proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}norm_2"), f"{block}ffn.up_proj")), f"{block}ffn.down_proj")
    scale = {"inv_sqrt_d_model": D**-0.5, None: 1.0}.get(config["logit_scale"], config["logit_scale"])
    return norm(x, "transformer.norm_f") @ t["transformer.wte.weight"].T * scale


@pytest.mark.parametrize(
    "config",
    [
        config_of(kv_heads=2, bias=True, alibi=True, qk_ln=False, norm_type="layernorm", logit_scale=None),
        config_of(kv_heads=6, bias=False, alibi=False, qk_ln=True, norm_type="low_precision_layernorm", logit_scale=0.3),
        config_of(kv_heads=1, bias=False, alibi=True, qk_ln=True, norm_type="rmsnorm", logit_scale="inv_sqrt_d_model"),
    ],
    ids=["groups-and-biases", "learned-positions-and-norms", "one-kv-head-and-rms"],
)  # fmt: skip
def test_every_option_counts(tmp_path: Path, config: dict[str, Any]) -> None:
    tensors = tensors_of(config)
    write(tmp_path, Case("mpt", "MPTForCausalLM", config), tensors)
    token_ids = [(7 * i) % V for i in range(L)]
    assert_close(run_in_chunks(load(tmp_path), token_ids, 6), logits_of(config, tensors, token_ids))
