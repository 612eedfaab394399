"""InternLM2 (Cai et al., 2024): Llama with a fused projection, each kv head's queries before its key and value."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, read_attention, read_model
from gpu_executor.models.heads import with_classifier
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename, skip, split_qkv
from gpu_executor.models.spec import Attention, Classifier, Pooling

_LAYER = r"(?:model\.)?layers\.(\d+)\."
_BIASES = every_layer("mixer.q.bias", "mixer.k.bias", "mixer.v.bias", "mixer.o.bias")


def internlm2_rules(attention: Attention) -> tuple[Rule, ...]:
    """Rules for everything but the head."""
    return (
        rename(r"(?:model\.)?tok_embeddings\.weight", "embed.weight"),
        rename(_LAYER + r"attention_norm\.weight", r"layers.\1.norm1.weight"),
        split_qkv(_LAYER + r"attention\.wqkv\.(weight|bias)", r"layers.\1.mixer.{}.\2", attention, layout="grouped"),
        rename(_LAYER + r"attention\.wo\.(weight|bias)", r"layers.\1.mixer.o.\2"),
        rename(_LAYER + r"ffn_norm\.weight", r"layers.\1.norm2.weight"),
        rename(_LAYER + r"feed_forward\.w1\.weight", r"layers.\1.mlp.gate.weight"),
        rename(_LAYER + r"feed_forward\.w3\.weight", r"layers.\1.mlp.up.weight"),
        rename(_LAYER + r"feed_forward\.w2\.weight", r"layers.\1.mlp.down.weight"),
        rename(r"(?:model\.)?norm\.weight", "norm.weight"),
        skip(_LAYER + r"attention\.rotary_emb\.inv_freq"),
    )


@architecture("InternLM2ForRewardModel", tasks=("reward",), examples="InternLM2 Reward")
def internlm2_reward(config: ConfigReader, architecture: str) -> Resolved:
    """One number per token; that of the last, reward_token_id, is the text's."""
    value = rename(r"v_head\.weight", "score.weight")
    return with_classifier(internlm2(config, architecture), Classifier(1), value, pooling=Pooling("all"))


@architecture("InternLM2ForCausalLM", examples="InternLM2, InternLM2.5")
def internlm2(config: ConfigReader, architecture: str) -> Resolved:
    attention = read_attention(config)
    rules = (*internlm2_rules(attention), rename(r"output\.weight", "head.weight", optional=True))
    extras = GATE + _BIASES if config.flag("bias", default=True) else GATE
    spec = read_model(config, architecture, [attention] * config.integer("num_hidden_layers"))
    return Resolved(spec, rules, extras)
