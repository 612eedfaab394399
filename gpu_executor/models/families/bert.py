"""BERT (Devlin et al., 2019): an encoder with learned positions, token types, and norms behind the branches.

What serves RoBERTa too is here: the same encoder under another prefix.
"""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.heads import read_num_classes, with_classifier
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename, skip
from gpu_executor.models.spec import Attention, Classifier, DecoderSpec, Layer, Learned, Mlp, ModelSpec, Norm, Pooling

EXTRAS = ("embed_norm.weight", "embed_norm.bias", *every_layer(
    "norm1.bias", "mixer.q.bias", "mixer.k.bias", "mixer.v.bias", "mixer.o.bias", "norm2.bias", "mlp.up.bias", "mlp.down.bias",
))  # fmt: skip


def encoder_rules(prefix: str) -> tuple[Rule, ...]:
    """Rules for everything but the table of positions and the heads; `prefix` is a pattern, as fine-tuned files have one."""
    embeddings, layer = rf"{prefix}embeddings\.", rf"{prefix}encoder\.layer\.(\d+)\."
    projections = [
        rename(rf"{layer}attention\.self\.{long}\.(weight|bias)", rf"layers.\1.mixer.{short}.\2")
        for long, short in (("query", "q"), ("key", "k"), ("value", "v"))
    ]
    return (
        rename(embeddings + r"word_embeddings\.weight", "embed.weight"),
        rename(embeddings + r"token_type_embeddings\.weight", "segments.weight"),
        *_norm(embeddings + r"LayerNorm\.", "embed_norm"),
        *projections,
        rename(layer + r"attention\.output\.dense\.(weight|bias)", r"layers.\1.mixer.o.\2"),
        *_norm(layer + r"attention\.output\.LayerNorm\.", r"layers.\1.norm1"),
        rename(layer + r"intermediate\.dense\.(weight|bias)", r"layers.\1.mlp.up.\2"),
        rename(layer + r"output\.dense\.(weight|bias)", r"layers.\1.mlp.down.\2"),
        *_norm(layer + r"output\.LayerNorm\.", r"layers.\1.norm2"),
        skip(embeddings + r"position_ids"),
    )


def _norm(pattern: str, target: str) -> tuple[Rule, ...]:
    """A norm, whose tensors TensorFlow called gamma and beta."""
    return rename(pattern + "(?:weight|gamma)", f"{target}.weight"), rename(pattern + "(?:bias|beta)", f"{target}.bias")


def read_encoder(
    config: ConfigReader, architecture: str, num_positions: int, num_segments: int, eps: float
) -> ModelSpec:
    """The model of a config; the last three arguments are where BERT and RoBERTa differ."""
    if (kind := config("position_embedding_type", default="absolute")) != "absolute":
        raise config.wrong(("position_embedding_type",), kind, "absolute")
    if config.flag("is_decoder", default=False):
        raise config.wrong(("is_decoder",), True, "false")
    hidden_size, num_heads = (
        config.integer("hidden_size", default=768),
        config.integer("num_attention_heads", default=12),
    )
    head_dim = config.with_defaults(hidden_size=768, num_attention_heads=12).head_dim(
        "hidden_size", "num_attention_heads"
    )
    layer = Layer(
        Attention(num_heads, num_heads, head_dim, head_dim**-0.5, causal=False),
        Mlp(config.integer("intermediate_size", default=3072), config.activation("hidden_act", default="gelu")),
        "post_norm",
    )
    encoder = DecoderSpec(
        layers=(layer,) * config.integer("num_hidden_layers", default=12),
        norm=Norm("layer", config.number("layer_norm_eps", default=eps)),
        hidden_size=hidden_size,
        positions=Learned(num_positions),
        tied=config.flag("tie_word_embeddings", default=True),
        num_segments=num_segments,
    )
    context = config.context(num_positions)
    return ModelSpec(
        architecture, encoder, config.integer("vocab_size"), context, has_head=False, pooling=Pooling("cls")
    )


def _read_bert(config: ConfigReader, architecture: str, *heads: Rule) -> Resolved:
    num_positions = config.integer("max_position_embeddings", default=512)
    num_segments = config.integer("type_vocab_size", default=2)
    spec = read_encoder(config, architecture, num_positions, num_segments, 1e-12)
    positions = rename(r"(?:bert\.)?embeddings\.position_embeddings\.weight", "positions.weight")
    return Resolved(spec, (*heads, *encoder_rules(r"(?:bert\.)?"), positions, skip(r"cls\..+")), EXTRAS)


@architecture("BertModel", tasks=("embed",), examples="BGE, all-MiniLM, E5")
def bert(config: ConfigReader, architecture: str) -> Resolved:
    return _read_bert(config, architecture, skip(r"(?:bert\.)?pooler\..+"))


@architecture("BertForSequenceClassification", tasks=("score", "classify"), examples="MS MARCO MiniLM")
def bert_classifier(config: ConfigReader, architecture: str) -> Resolved:
    return with_classifier(
        _read_bert(config, architecture),
        Classifier(read_num_classes(config)),
        rename(r"(?:bert\.)?pooler\.dense\.(weight|bias)", r"dense.\1"),
        rename(r"classifier\.(weight|bias)", r"score.\1"),
        extras=("dense.weight", "dense.bias", "score.bias"),
    )
