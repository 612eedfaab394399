"""GPT-NeoX (Black et al., 2022) and Pythia (Biderman et al., 2023): a norm for each of two parallel branches, partial RoPE."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import read_attention, read_model
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename, skip, split_qkv
from gpu_executor.models.spec import Attention, Mlp, Norm

_MODEL, _LAYER = r"(?:gpt_neox\.)?", r"(?:gpt_neox\.)?layers\.(\d+)\."
_EXTRAS = ("norm.bias", *every_layer("norm1.bias", "norm2.weight", "norm2.bias", "mlp.up.bias", "mlp.down.bias"))
_ATTENTION_BIASES = every_layer("mixer.q.bias", "mixer.k.bias", "mixer.v.bias", "mixer.o.bias")


def _rules(attention: Attention) -> tuple[Rule, ...]:
    return (
        rename(_MODEL + r"embed_in\.weight", "embed.weight"),
        rename(_LAYER + r"input_layernorm\.(weight|bias)", r"layers.\1.norm1.\2"),
        split_qkv(
            _LAYER + r"attention\.query_key_value\.(weight|bias)",
            r"layers.\1.mixer.{}.\2",
            attention,
            layout="grouped",
        ),
        rename(_LAYER + r"attention\.dense\.(weight|bias)", r"layers.\1.mixer.o.\2"),
        rename(_LAYER + r"post_attention_layernorm\.(weight|bias)", r"layers.\1.norm2.\2"),
        rename(_LAYER + r"mlp\.dense_h_to_4h\.(weight|bias)", r"layers.\1.mlp.up.\2"),
        rename(_LAYER + r"mlp\.dense_4h_to_h\.(weight|bias)", r"layers.\1.mlp.down.\2"),
        rename(_MODEL + r"final_layer_norm\.(weight|bias)", r"norm.\1"),
        rename(r"(?:embed_out|lm_head)\.weight", "head.weight", optional=True),
        skip(_LAYER + r"attention\.(?:bias|masked_bias|rotary_emb\.(?:inv_freq|cos_cached|sin_cached))"),
    )


@architecture("GPTNeoXForCausalLM", examples="Pythia, GPT-NeoX 20B, Dolly, RedPajama-INCITE")
def gpt_neox(config: ConfigReader, architecture: str) -> Resolved:
    config = config.updated(
        {
            "rope_theta": config("rotary_emb_base", default=None),
            "partial_rotary_factor": config("rotary_pct", default=None),
        }
    )
    config = config.with_defaults(partial_rotary_factor=0.25)
    attention = read_attention(config)
    spec = read_model(
        config,
        architecture,
        [attention] * config.integer("num_hidden_layers"),
        norm=Norm("layer", config.number("layer_norm_eps", default=1e-5)),
        mlp=Mlp(config.integer("intermediate_size"), config.activation("hidden_act", default="gelu")),
        residual="parallel" if config.flag("use_parallel_residual", default=True) else "sequential",
    )
    biases = _ATTENTION_BIASES if config.flag("attention_bias", default=True) else ()
    return Resolved(spec, _rules(attention), _EXTRAS + biases)
