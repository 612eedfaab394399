"""Owns the way from a layer's spec to the block that computes it: which class stands for which part, with which weights."""

from __future__ import annotations

import torch

from gpu_executor.layers.linear import Linear
from gpu_executor.layers.mlp import GatedMlp, PlainMlp
from gpu_executor.layers.moe import MoeMlp
from gpu_executor.mixers.attention import AttentionMixer
from gpu_executor.mixers.block_sparse_attention import BlockSparseMixer
from gpu_executor.mixers.cross_attention import CrossAttention
from gpu_executor.mixers.mamba import MambaMixer
from gpu_executor.mixers.mla import MlaMixer
from gpu_executor.models.block import BLOCKS, Block, FeedForward, Parts
from gpu_executor.models.rope import RopeTables
from gpu_executor.models.spec import (
    Alibi,
    Attention,
    BlockSparseAttention,
    DecoderSpec,
    Mamba,
    Mixer,
    Mla,
    Mlp,
    Moe,
    Norm,
    Rope,
)
from gpu_executor.models.spec import FeedForward as FeedForwardSpec
from gpu_executor.models.weights import Weights


def build_block(decoder: DecoderSpec, index: int, weights: Weights, tables: RopeTables, prefix: str = "") -> Block:
    """The block of a layer; `prefix` stands before the names of its stack."""
    layer, name = decoder.layers[index], f"{prefix}layers.{index}"
    parts = Parts(
        mixer=_mixer(layer.mixer, f"{name}.mixer", decoder.norm, weights, tables),
        mlp=_mlp(layer.mlp, f"{name}.mlp", weights),
        norm1=weights.norm(f"{name}.norm1", decoder.norm),
        # A norm that has no tensors is there in every form but the one that can do without.
        norm2=None
        if layer.residual == "parallel" and not decoder.norm.affine
        else weights.norm(f"{name}.norm2", decoder.norm),
        post_norm1=weights.norm(f"{name}.post_norm1", decoder.norm) if decoder.norm.affine else None,
        post_norm2=weights.norm(f"{name}.post_norm2", decoder.norm) if decoder.norm.affine else None,
        shared_norm=weights.norm(f"{name}.shared_norm", decoder.norm),
        residual_scale=layer.residual_scale,
        cross=None if layer.cross is None else _cross(layer.cross, f"{name}.cross", decoder.norm, weights),
        cross_norm=None if layer.cross is None else weights.norm(f"{name}.cross_norm", decoder.norm),
        cross_gate=weights.get(f"{name}.cross_gate"),
        mlp_gate=weights.get(f"{name}.mlp_gate"),
    )
    return BLOCKS[layer.residual](parts)


def _mixer(
    spec: Mixer | None, name: str, norm: Norm, weights: Weights, tables: RopeTables
) -> AttentionMixer | BlockSparseMixer | MambaMixer | MlaMixer | None:
    """The mixer of a spec. Another kind of mixer joins as another case."""
    match spec:
        case None:
            return None
        case Attention(positions=positions):
            qkv, o = weights.linear(f"{name}.qkv"), weights.linear(f"{name}.o")
            slopes = None
            if isinstance(positions, Alibi):
                slopes = torch.tensor(positions.slopes, dtype=torch.float32, device=weights.device)
            return AttentionMixer(
                spec,
                qkv,
                o,
                q_norm=weights.norm(f"{name}.q_norm", spec.norm or norm) if spec.qk_norm else None,
                k_norm=weights.norm(f"{name}.k_norm", spec.norm or norm) if spec.qk_norm else None,
                cos_sin=tables(positions) if isinstance(positions, Rope) else None,
                alibi_slopes=slopes,
            )
        case BlockSparseAttention():
            dense = _mixer(spec.attention, name, norm, weights, tables)
            return BlockSparseMixer(spec, dense)
        case Mla():
            direct = spec.q_rank is None
            return MlaMixer(
                spec,
                down=weights.linear(f"{name}.kv_a" if direct else f"{name}.qkv_a"),
                q=weights.linear(f"{name}.q" if direct else f"{name}.q_b"),
                kv_b=weights.get(f"{name}.kv_b.weight"),
                o=weights.linear(f"{name}.o"),
                q_norm=None if direct else weights.norm(f"{name}.q_norm", spec.norm),
                kv_norm=weights.norm(f"{name}.kv_norm", spec.norm),
                cos_sin=tables(spec.rope),
            )
        case Mamba():
            norms = ("dt_norm", "b_norm", "c_norm") if spec.norm is not None else ()
            return MambaMixer(
                spec,
                in_proj=weights.linear(f"{name}.in_proj"),
                conv_weight=weights.get(f"{name}.conv.weight"),
                conv_bias=weights.get(f"{name}.conv.bias"),
                x_proj=weights.linear(f"{name}.x_proj"),
                dt_proj=Linear(weights.get(f"{name}.dt_proj.weight")),
                dt_bias=weights.get(f"{name}.dt_proj.bias"),
                a=weights.get(f"{name}.a"),
                d=weights.get(f"{name}.d"),
                out_proj=weights.linear(f"{name}.out_proj"),
                **{norm: weights.norm(f"{name}.{norm}", spec.norm) for norm in norms},
            )
    raise NotImplementedError(f"no mixer for {spec}")


def _cross(spec: Attention, name: str, norm: Norm, weights: Weights) -> CrossAttention:
    return CrossAttention(
        spec,
        weights.linear(f"{name}.q"),
        weights.linear(f"{name}.kv"),
        weights.linear(f"{name}.o"),
        q_norm=weights.norm(f"{name}.q_norm", norm) if spec.qk_norm else None,
        k_norm=weights.norm(f"{name}.k_norm", norm) if spec.qk_norm else None,
    )


def _mlp(spec: FeedForwardSpec | None, name: str, weights: Weights) -> FeedForward | None:
    """The feed-forward layer of a spec, gated if there is a gate matrix. Another kind joins as another case."""
    match spec:
        case None:
            return None
        case Mlp():
            return _dense(spec.act, name, weights, spec.act_bound)
        case Moe():
            return MoeMlp(
                spec,
                router=weights.get(f"{name}.router.weight"),
                score_bias=weights.get(f"{name}.router.score_bias"),
                gate_up=weights.get(f"{name}.experts.gate_up.weight"),
                down=weights.get(f"{name}.experts.down.weight"),
                shared=None if spec.shared_size is None else _dense(spec.act, f"{name}.shared", weights),
                shared_gate=weights.linear(f"{name}.shared_gate"),
            )
    raise NotImplementedError(f"no feed-forward layer for {spec}")


def _dense(act: str, name: str, weights: Weights, bound: float | None = None) -> GatedMlp | PlainMlp:
    gate_up, down = weights.linear(f"{name}.gate_up"), weights.linear(f"{name}.down")
    if gate_up is not None:
        return GatedMlp(act, gate_up, down, bound)
    return PlainMlp(act, weights.linear(f"{name}.up"), down, bound)
