"""Mamba (Gu and Dao, 2023) and Falcon Mamba (Zuo et al., 2024): state spaces alone, without attention and MLPs.

Its parts serve families that mix such layers with others.
"""

from __future__ import annotations

import torch

from forebay.errors import CheckpointError
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, change, rename
from gpu_executor.models.spec import DecoderSpec, Layer, Mamba, ModelSpec, Norm

_MOST_TOKENS = 1 << 20  # no position is ever counted; this bounds the bookkeeping


def _decay(a_log: torch.Tensor) -> torch.Tensor:
    return -torch.exp(a_log.float())


def _channels_and_taps(weight: torch.Tensor) -> torch.Tensor:
    if weight.dim() != 3 or weight.shape[1] != 1:
        raise CheckpointError("a depthwise convolution is stored as (channels, 1, taps)")
    return weight[:, 0]


def mixer_rules(layer: str) -> tuple[Rule, ...]:
    """Rules for the tensors of a state space; `layer` matches what is before their names, with the layer's number as \\1."""
    return (
        rename(layer + r"(in_proj|x_proj|dt_proj|out_proj)\.(weight|bias)", r"layers.\1.mixer.\2.\3"),
        change(layer + r"conv1d\.weight", r"layers.\1.mixer.conv.weight", _channels_and_taps),
        rename(layer + r"conv1d\.bias", r"layers.\1.mixer.conv.bias", optional=True),
        change(layer + r"A_log", r"layers.\1.mixer.a", _decay),
        rename(layer + r"D", r"layers.\1.mixer.d"),
    )


def read_mixer(
    config: ConfigReader, hidden_size: int, *, inner_size: int | None = None, norm: Norm | None = None
) -> Mamba:
    """The state space of a config, by the names that transformers, Jamba and the paper's own code have for its keys."""
    rank_names = ("time_step_rank", "mamba_dt_rank", "dt_rank")
    automatic = config(*rank_names, default="auto") == "auto"
    return Mamba(
        inner_size=inner_size or int(config.number("expand", "mamba_expand", default=2) * hidden_size),
        state_size=config.integer("state_size", "mamba_d_state", "d_state", default=16),
        conv_size=config.integer("conv_kernel", "mamba_d_conv", "d_conv", default=4),
        dt_rank=-(-hidden_size // 16) if automatic else config.integer(*rank_names),
        norm=norm,
    )


def mixer_extras(*, bias: bool, conv_bias: bool) -> tuple[str, ...]:
    """The biases that a checkpoint must hold."""
    projections = every_layer("mixer.in_proj.bias", "mixer.out_proj.bias") if bias else ()
    return projections + (every_layer("mixer.conv.bias") if conv_bias else ())


def check_activation(config: ConfigReader, name: str = "hidden_act") -> None:
    """Convolution and gate have one activation in every model; a config that names another cannot be served."""
    if config.activation(name, default="silu") != "silu":
        raise config.wrong((name,), config(name), "silu")


_RULES = (
    rename(r"(?:backbone\.)?embeddings?\.weight", "embed.weight"),  # "embedding" in files of the paper's own code
    rename(r"(?:backbone\.)?layers\.(\d+)\.norm\.(weight|bias)", r"layers.\1.norm1.\2"),
    *mixer_rules(r"(?:backbone\.)?layers\.(\d+)\.mixer\."),
    rename(r"(?:backbone\.)?norm_f\.(weight|bias)", r"norm.\1"),
    rename(r"lm_head\.weight", "head.weight", optional=True),  # not there, or there again, where the head is tied
)


def _resolved(
    config: ConfigReader, architecture: str, mixer: Mamba, hidden_size: int, num_layers: int, norm: Norm, tied: bool,
    vocab_size: int, trained_len: int, extras: tuple[str, ...],
) -> Resolved:  # fmt: skip
    decoder = DecoderSpec((Layer(mixer, None),) * num_layers, norm, hidden_size, tied=tied)
    return Resolved(
        ModelSpec(architecture, decoder, vocab_size, config.context(trained_len, _MOST_TOKENS)), _RULES, extras
    )


@architecture("MambaForCausalLM", examples="mamba-130m-hf to mamba-2.8b-hf")
def mamba(config: ConfigReader, architecture: str) -> Resolved:
    if not config.has("hidden_size") and config.has("d_model"):
        return original(config, architecture)
    return _transformers(config, architecture, None, 2048)


@architecture("FalconMambaForCausalLM", examples="Falcon Mamba 7B")
def falcon_mamba(config: ConfigReader, architecture: str) -> Resolved:
    norm = Norm("rms", config.number("mixer_rms_eps", default=1e-6), affine=False)
    return _transformers(config, architecture, norm, 8192)


def _transformers(config: ConfigReader, architecture: str, norm: Norm | None, trained_len: int) -> Resolved:
    check_activation(config)
    hidden_size = config.integer("hidden_size")
    # Where the two disagree, as in Falcon Mamba's config, the size is right and the factor is not.
    inner_size = config.integer("intermediate_size", default=None)
    return _resolved(
        config, architecture, read_mixer(config, hidden_size, inner_size=inner_size, norm=norm), hidden_size,
        config.integer("num_hidden_layers"), Norm("rms", config.number("layer_norm_epsilon", default=1e-5)),
        config.flag("tie_word_embeddings", default=True), config.integer("vocab_size"), trained_len,
        mixer_extras(
            bias=config.flag("use_bias", default=False), conv_bias=config.flag("use_conv_bias", default=True)
        ),
    )  # fmt: skip


@architecture(
    "MambaLMHeadModel", examples="mamba-130m to mamba-2.8b, mamba-2.8b-slimpj", keys=("d_model", "n_layer", "ssm_cfg")
)
def original(config: ConfigReader, architecture: str) -> Resolved:
    """The config of the paper's own code, which names no architecture."""
    ssm = config.section("ssm_cfg")
    if ssm("layer", default="Mamba1") != "Mamba1":
        raise ssm.wrong(("layer",), ssm("layer"), "Mamba1")
    for name in ("attn_layer_idx", "d_intermediate"):
        if config(name, default=0):
            raise config.wrong((name,), config(name), "empty: layers of attention and MLPs are not served there")
    hidden_size, multiple = config.integer("d_model"), config.integer("pad_vocab_size_multiple", default=8)
    norm = Norm("rms" if config.flag("rms_norm", default=True) else "layer", 1e-5)
    extras = mixer_extras(bias=ssm.flag("bias", default=False), conv_bias=ssm.flag("conv_bias", default=True))
    return _resolved(
        config, architecture, read_mixer(ssm, hidden_size), hidden_size, config.integer("n_layer"), norm,
        config.flag("tie_embeddings", default=True), -(-config.integer("vocab_size") // multiple) * multiple, 2048,
        extras if norm.kind == "rms" else ("norm.bias", *extras, *every_layer("norm1.bias")),
    )  # fmt: skip
