"""RoBERTa (Liu et al., 2019), XLM-RoBERTa (Conneau et al., 2020): BERT with one token type, positions behind the padding's."""

from __future__ import annotations

import torch

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.bert import EXTRAS, encoder_rules, read_encoder
from gpu_executor.models.heads import read_num_classes, with_classifier
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, change, rename, skip
from gpu_executor.models.spec import Classifier

_PREFIX = r"(?:roberta\.)?"


def _read_roberta(config: ConfigReader, architecture: str, *heads: Rule) -> Resolved:
    pad_token_id = config("pad_token_id", default=1)
    if not isinstance(pad_token_id, int) or pad_token_id < 0:
        raise config.wrong(("pad_token_id",), pad_token_id, "a token id")
    first = pad_token_id + 1

    def without_rows_of_padding(positions: torch.Tensor) -> torch.Tensor:
        """(P + first, D) -> (P, D): the first token's position is the padding's id plus one."""
        return positions[first:]

    num_positions = config.integer("max_position_embeddings", default=512) - first
    if num_positions < 1:
        raise config.wrong(("max_position_embeddings",), num_positions + first, f"above {first}, where positions begin")
    num_segments = config.integer("type_vocab_size", default=2)
    spec = read_encoder(config, architecture, num_positions, num_segments, 1e-12)
    positions = change(
        _PREFIX + r"embeddings\.position_embeddings\.weight", "positions.weight", without_rows_of_padding
    )
    leftovers = skip(r"lm_head\..+"), skip(_PREFIX + r"pooler\..+")
    return Resolved(spec, (*heads, *encoder_rules(_PREFIX), positions, *leftovers), EXTRAS)


@architecture("RobertaModel", "RobertaForMaskedLM", tasks=("embed",), examples="all-DistilRoBERTa, Arctic Embed")
@architecture("XLMRobertaModel", tasks=("embed",), examples="BGE-M3, Multilingual E5")
def roberta(config: ConfigReader, architecture: str) -> Resolved:
    return _read_roberta(config, architecture)


@architecture("RobertaForSequenceClassification", tasks=("score", "classify"), examples="Quora RoBERTa")
@architecture("XLMRobertaForSequenceClassification", tasks=("score", "classify"), examples="BGE Reranker v2 M3")
def roberta_classifier(config: ConfigReader, architecture: str) -> Resolved:
    return with_classifier(
        _read_roberta(config, architecture),
        Classifier(read_num_classes(config)),
        rename(r"classifier\.dense\.(weight|bias)", r"dense.\1"),
        rename(r"classifier\.out_proj\.(weight|bias)", r"score.\1"),
        extras=("dense.weight", "dense.bias", "score.bias"),
    )
