"""Owns the tiny checkpoints that pool, and what transformers makes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

from tests.gpu_executor.models.checkpoints import BASE, Case, case_of

ENCODER = {
    "vocab_size": 199, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80,
    "max_position_embeddings": 130, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0, "type_vocab_size": 2,
    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "position_embedding_type": "absolute",
    "classifier_dropout": None, "initializer_range": 0.02, "use_cache": True,
}  # fmt: skip
_ROBERTA = ENCODER | {
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_THREE = {"id2label": {"0": "NEGATIVE", "1": "NEUTRAL", "2": "POSITIVE"}}
_ONE = {"id2label": {"0": "LABEL_0"}}


def _with_gamma_and_beta(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As Google's first checkpoints were converted: norms in TensorFlow's words, and the heads of pre-training."""
    tensors = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    return tensors | {
        "cls.predictions.bias": torch.zeros(199),
        "cls.seq_relationship.weight": torch.zeros(2, 48),
        "bert.embeddings.position_ids": torch.arange(130)[None],
    }


def _base(name: str, architecture: str, **config: Any) -> Case:
    return Case(name, architecture, BASE | config)


# The base model alone; its hidden states are what is pooled.
EMBED = [
    Case("bert", "BertModel", ENCODER | {"model_type": "bert"}),
    Case("bert-first-release", "BertModel", ENCODER | {"model_type": "bert", "hidden_act": "gelu_new"},
         to_hub=_with_gamma_and_beta),
    Case("roberta", "RobertaModel", _ROBERTA | {"model_type": "roberta"}),
    Case("roberta-masked-lm", "RobertaForMaskedLM", _ROBERTA | {"model_type": "roberta"}),
    Case("xlm-roberta-pad-3", "XLMRobertaModel", _ROBERTA | {"model_type": "xlm-roberta", "pad_token_id": 3}),
    _base("llama-base", "LlamaModel", model_type="llama"),
    _base("llama-with-head", "LlamaForCausalLM", model_type="llama"),
    _base("mistral-base", "MistralModel", model_type="mistral", sliding_window=20),
    _base("qwen2-base", "Qwen2Model", model_type="qwen2"),
    _base("qwen2-bidirectional", "Qwen2ForCausalLM", model_type="qwen2", is_causal=False),
    _base("gemma2-base", "Gemma2Model", model_type="gemma2", head_dim=12, query_pre_attn_scalar=12, sliding_window=20,
          hidden_activation="gelu_pytorch_tanh"),
]  # fmt: skip
CLASSIFY = [
    Case("bert-one-label", "BertForSequenceClassification", ENCODER | _ONE | {"model_type": "bert"}),
    Case("bert-three-labels", "BertForSequenceClassification", ENCODER | _THREE | {"model_type": "bert"}),
    Case("roberta-one-label", "RobertaForSequenceClassification", _ROBERTA | _ONE | {"model_type": "roberta"}),
    Case(
        "xlm-roberta-one-label", "XLMRobertaForSequenceClassification", _ROBERTA | _ONE | {"model_type": "xlm-roberta"}
    ),
    _base("qwen2-three-labels", "Qwen2ForSequenceClassification", model_type="qwen2", **_THREE),
    Case("jamba-three-labels", "JambaForSequenceClassification", case_of("jamba").config | _THREE),
]


@dataclasses.dataclass
class Reference:
    """A model of transformers, asked for one prompt at a time."""

    model: transformers.PreTrainedModel

    @torch.no_grad()
    def hidden(self, prompt: Sequence[int], types: Sequence[int] = ()) -> np.ndarray:
        """The states (n, D) of the base model, after its last norm."""
        return self.model.base_model(**_inputs(prompt, types)).last_hidden_state[0].numpy()

    @torch.no_grad()
    def logits(self, prompt: Sequence[int], types: Sequence[int] = ()) -> np.ndarray:
        """What the classifier gives (num_classes)."""
        return self.model(**_inputs(prompt, types)).logits[0].numpy()


def _inputs(prompt: Sequence[int], types: Sequence[int]) -> dict[str, torch.Tensor]:
    inputs = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}
    return inputs | ({"token_type_ids": torch.tensor([types])} if types else {})
