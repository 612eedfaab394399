"""GPT-J (Wang and Komatsuzaki, 2021): parallel branches behind one LayerNorm, neighbours in part of each head rotate."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, permute_rope, rename, skip
from gpu_executor.models.spec import Attention, DecoderSpec, Layer, Mlp, ModelSpec, Norm, Rope

_MODEL, _LAYER = r"(?:transformer\.)?", r"(?:transformer\.)?h\.(\d+)\."
_EXTRAS = ("norm.bias", "head.bias", *every_layer("norm1.bias", "mlp.up.bias", "mlp.down.bias"))


def _rules(head_dim: int, rope_dim: int) -> tuple[Rule, ...]:
    return (
        rename(_MODEL + r"wte\.weight", "embed.weight"),
        rename(_LAYER + r"ln_1\.(weight|bias)", r"layers.\1.norm1.\2"),
        permute_rope(
            _LAYER + r"attn\.([qk])_proj\.weight", r"layers.\1.mixer.\2.weight", head_dim=head_dim, rope_dim=rope_dim
        ),
        rename(_LAYER + r"attn\.v_proj\.weight", r"layers.\1.mixer.v.weight"),
        rename(_LAYER + r"attn\.out_proj\.weight", r"layers.\1.mixer.o.weight"),
        rename(_LAYER + r"mlp\.fc_in\.(weight|bias)", r"layers.\1.mlp.up.\2"),
        rename(_LAYER + r"mlp\.fc_out\.(weight|bias)", r"layers.\1.mlp.down.\2"),
        rename(_MODEL + r"ln_f\.(weight|bias)", r"norm.\1"),
        rename(r"lm_head\.(weight|bias)", r"head.\1"),
        skip(_LAYER + r"attn\.(?:bias|masked_bias|embed_positions)"),
    )


@architecture("GPTJForCausalLM", examples="GPT-J 6B")
def gptj(config: ConfigReader, architecture: str) -> Resolved:
    hidden_size, num_heads = config.integer("n_embd", "hidden_size"), config.integer("n_head", "num_attention_heads")
    head_dim, rope_dim = config.head_dim("n_embd", "n_head"), config.integer("rotary_dim", default=64)
    if rope_dim % 2 or rope_dim > head_dim:
        raise config.wrong(("rotary_dim",), rope_dim, f"an even number of the {head_dim} dimensions of a head")
    attention = Attention(num_heads, num_heads, head_dim, head_dim**-0.5, Rope(rope_dim, 10000.0))
    mlp = Mlp(
        config.integer("n_inner", default=4 * hidden_size), config.activation("activation_function", default="gelu_new")
    )
    decoder = DecoderSpec(
        layers=(Layer(attention, mlp, "parallel"),) * config.integer("n_layer", "num_hidden_layers"),
        norm=Norm("layer", config.number("layer_norm_epsilon", default=1e-5)),
        hidden_size=hidden_size,
        tied=config.flag("tie_word_embeddings", default=False),
    )
    context = config.context(config.integer("n_positions", "max_position_embeddings", default=2048))
    spec = ModelSpec(architecture, decoder, config.integer("vocab_size"), context)
    return Resolved(spec, _rules(head_dim, rope_dim), _EXTRAS)
