"""StarCoder and SantaCoder (Li et al., 2023): GPT-2 with matrices stored as (out, in), and one kv head for all queries."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.gpt2 import EXTRAS, LAYER, MODEL, read_model
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename, skip, split_qkv
from gpu_executor.models.spec import Attention


def _rules(attention: Attention) -> tuple[Rule, ...]:
    return (
        rename(MODEL + r"wte\.weight", "embed.weight"),
        rename(MODEL + r"wpe\.weight", "positions.weight"),
        rename(LAYER + r"ln_([12])\.(weight|bias)", r"layers.\1.norm\2.\3"),
        # With one kv head: all queries, the key, the value. With as many as query heads: q, k and v of each.
        split_qkv(LAYER + r"attn\.c_attn\.(weight|bias)", r"layers.\1.mixer.{}.\2", attention, layout="grouped"),
        rename(LAYER + r"attn\.c_proj\.(weight|bias)", r"layers.\1.mixer.o.\2"),
        rename(LAYER + r"mlp\.c_fc\.(weight|bias)", r"layers.\1.mlp.up.\2"),
        rename(LAYER + r"mlp\.c_proj\.(weight|bias)", r"layers.\1.mlp.down.\2"),
        rename(MODEL + r"ln_f\.(weight|bias)", r"norm.\1"),
        rename(r"lm_head\.weight", "head.weight", optional=True),
        skip(LAYER + r"attn\.(?:bias|masked_bias)"),
    )


@architecture("GPTBigCodeForCausalLM", examples="StarCoder, SantaCoder")
def gpt_bigcode(config: ConfigReader, architecture: str) -> Resolved:
    config = config.with_defaults(activation_function="gelu_pytorch_tanh")
    num_heads, head_dim = config.integer("n_head", "num_attention_heads"), config.head_dim("n_embd", "n_head")
    num_kv_heads = 1 if config.flag("multi_query", default=True) else num_heads
    scale = head_dim**-0.5 if config.flag("scale_attn_weights", default=True) else 1.0
    attention = Attention(num_heads, num_kv_heads, head_dim, scale)
    spec = read_model(config, architecture, [attention] * config.integer("n_layer", "num_hidden_layers"))
    return Resolved(spec, _rules(attention), EXTRAS)
