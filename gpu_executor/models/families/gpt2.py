"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm, one fused projection, matrices stored as (in, out)."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import ACTIVATIONS, biases
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename, skip, split, transpose
from gpu_executor.models.spec import Attention, DecoderSpec, Layer, Mlp, ModelSpec, Norm

_H = r"(?:transformer\.)?h\.(\d+)\."  # the official file has no prefix, fine-tuned ones have


def _rules(hidden_size: int) -> tuple[Rule, ...]:
    qkv = (r"layers.\1.mixer.q.\2", r"layers.\1.mixer.k.\2", r"layers.\1.mixer.v.\2")
    return (
        rename(r"(?:transformer\.)?wte\.weight", "embed.weight"),
        rename(r"(?:transformer\.)?wpe\.weight", "positions.weight"),
        rename(_H + r"ln_([12])\.(weight|bias)", r"layers.\1.norm\2.\3"),
        split(_H + r"attn\.c_attn\.(weight|bias)", qkv, (hidden_size,) * 3, transposed=True),
        transpose(_H + r"attn\.c_proj\.(weight|bias)", r"layers.\1.mixer.o.\2"),
        transpose(_H + r"mlp\.c_fc\.(weight|bias)", r"layers.\1.mlp.up.\2"),
        transpose(_H + r"mlp\.c_proj\.(weight|bias)", r"layers.\1.mlp.down.\2"),
        rename(r"(?:transformer\.)?ln_f\.(weight|bias)", r"norm.\1"),
        rename(r"lm_head\.weight", "head.weight", optional=True),
        skip(_H + r"attn\.(?:bias|masked_bias)"),  # causal masks that old versions saved
    )


@architecture("GPT2LMHeadModel", examples="GPT-2, DistilGPT-2")
def gpt2(config: ConfigReader) -> Resolved:
    hidden_size = config.integer("n_embd", "hidden_size")
    num_heads = config.integer("n_head", "num_attention_heads")
    head_dim = hidden_size // num_heads
    mlp = Mlp(
        config.integer("n_inner", default=4 * hidden_size),
        ACTIVATIONS[config("activation_function", default="gelu_new")],
    )
    layers = []
    for i in range(config.integer("n_layer", "num_hidden_layers")):
        scale = head_dim**-0.5 if config("scale_attn_weights", default=True) else 1.0
        if config("scale_attn_by_inverse_layer_idx", default=False):
            scale /= i + 1
        layers.append(Layer(Attention(num_heads, num_heads, head_dim, scale), mlp))
    decoder = DecoderSpec(
        layers=tuple(layers),
        norm=Norm("layer", config("layer_norm_epsilon", default=1e-5)),
        hidden_size=hidden_size,
        tied=bool(config("tie_word_embeddings", default=True)),
        num_positions=config.integer("n_positions", "n_ctx", "max_position_embeddings"),
    )
    context = config.context("n_positions", "n_ctx", "max_position_embeddings")
    projections = ("norm1", "mixer.q", "mixer.k", "mixer.v", "mixer.o", "norm2", "mlp.up", "mlp.down")
    return Resolved(
        ModelSpec(config.architecture, decoder, config.integer("vocab_size"), context),
        _rules(hidden_size),
        ("norm.bias", *biases(*projections)),
    )
