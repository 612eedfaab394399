"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm, one fused projection, matrices stored as (in, out)."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename, skip, split_qkv, transpose
from gpu_executor.models.spec import Attention, DecoderSpec, Layer, Learned, Mlp, ModelSpec, Norm

# The official file has no prefix, fine-tuned ones have.
MODEL, LAYER = r"(?:transformer\.)?", r"(?:transformer\.)?h\.(\d+)\."
EXTRAS = ("norm.bias", *every_layer(
    "norm1.bias", "mixer.q.bias", "mixer.k.bias", "mixer.v.bias", "mixer.o.bias", "norm2.bias", "mlp.up.bias", "mlp.down.bias",
))  # fmt: skip


def _rules(attention: Attention) -> tuple[Rule, ...]:
    return (
        rename(MODEL + r"wte\.weight", "embed.weight"),
        rename(MODEL + r"wpe\.weight", "positions.weight"),
        rename(LAYER + r"ln_([12])\.(weight|bias)", r"layers.\1.norm\2.\3"),
        split_qkv(LAYER + r"attn\.c_attn\.(weight|bias)", r"layers.\1.mixer.{}.\2", attention, transposed=True),
        transpose(LAYER + r"attn\.c_proj\.(weight|bias)", r"layers.\1.mixer.o.\2"),
        transpose(LAYER + r"mlp\.c_fc\.(weight|bias)", r"layers.\1.mlp.up.\2"),
        transpose(LAYER + r"mlp\.c_proj\.(weight|bias)", r"layers.\1.mlp.down.\2"),
        rename(MODEL + r"ln_f\.(weight|bias)", r"norm.\1"),
        rename(r"lm_head\.weight", "head.weight", optional=True),  # there again in fine-tuned files
        skip(LAYER + r"attn\.(?:bias|masked_bias)"),  # causal masks that old versions saved
    )


def read_model(config: ConfigReader, architecture: str, mixers: Sequence[Attention]) -> ModelSpec:
    """A model with GPT-2's config and these mixers."""
    hidden_size = config.integer("n_embd", "hidden_size")
    mlp = Mlp(
        config.integer("n_inner", default=4 * hidden_size), config.activation("activation_function", default="gelu_new")
    )
    num_positions = config.integer("n_positions", "n_ctx", "max_position_embeddings")
    decoder = DecoderSpec(
        layers=tuple(Layer(mixer, mlp) for mixer in mixers),
        norm=Norm("layer", config.number("layer_norm_epsilon", default=1e-5)),
        hidden_size=hidden_size,
        positions=Learned(num_positions),
        tied=config.flag("tie_word_embeddings", default=True),
    )
    return ModelSpec(architecture, decoder, config.integer("vocab_size"), config.context(num_positions))


@architecture("GPT2LMHeadModel", examples="GPT-2, DistilGPT-2")
def gpt2(config: ConfigReader, architecture: str) -> Resolved:
    num_heads, head_dim = config.integer("n_head", "num_attention_heads"), config.head_dim("n_embd", "n_head")
    scale = head_dim**-0.5 if config.flag("scale_attn_weights", default=True) else 1.0
    by_layer = config.flag("scale_attn_by_inverse_layer_idx", default=False)
    mixers = [
        Attention(num_heads, num_heads, head_dim, scale / (i + 1) if by_layer else scale)
        for i in range(config.integer("n_layer", "num_hidden_layers"))
    ]
    return Resolved(read_model(config, architecture, mixers), _rules(mixers[0]), EXTRAS)
