"""Owns tiny checkpoints that pool, as folders, and the models of transformers that they were saved from."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.frontend.pooling_tier import with_pairs
from tests.preprocess.tokenizer_zoo import CHATML, tokenizer_json

MAX_SENTENCE_TOKENS = 16  # of the checkpoint with files of sentence-transformers
PROMPTS = {"query": "hello my ", "document": ""}
SIZES = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
LABELS = {0: "bad", 1: "good", 2: "odd"}


def bert_config(**keys: Any) -> Any:
    return transformers.BertConfig(**SIZES, max_position_embeddings=64, **keys)


def save(folder: Path, model: Any, tokenizer: str) -> Path:
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer)
    return folder


@functools.cache
def reference(kind: str) -> Any:
    """A tiny model with weights far enough from zero that every part of it matters."""
    torch.manual_seed(7)
    makers = {
        "embed": lambda: transformers.BertModel(bert_config()),
        "classify": lambda: transformers.BertForSequenceClassification(bert_config(id2label=LABELS)),
        "score": lambda: transformers.BertForSequenceClassification(bert_config(num_labels=1)),
        "decoder": lambda: transformers.Qwen2ForSequenceClassification(
            transformers.Qwen2Config(**SIZES, num_key_value_heads=2, num_labels=3, pad_token_id=0)
        ),
    }
    model = makers[kind]().eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(name.endswith("orm.weight")), std=0.3)
    return model


def tokenizer() -> Any:
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=with_pairs(), pad_token="[UNK]", sep_token="[SEP]", cls_token="[CLS]", model_input_names=inputs
    )


def write_checkpoint(root: Path, kind: str) -> Path:
    """The folder of a kind: those of `reference`, and "sentence", which has the files of sentence-transformers."""
    if kind == "decoder":
        folder = save(root / kind, reference(kind), tokenizer_json("byte_level"))
        (folder / "chat_template.jinja").write_text(CHATML)
        return folder
    folder = save(root / kind, reference("embed" if kind == "sentence" else kind), with_pairs().to_str())
    if kind != "sentence":
        return folder
    (folder / "1_Pooling").mkdir()
    steps = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    for name, content in {
        "modules.json": [{"path": p, "type": f"sentence_transformers.models.{step}"} for p, step in steps.items()],
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "include_prompt": False},
        "config_sentence_transformers.json": {"prompts": PROMPTS, "default_prompt_name": None},
        "sentence_bert_config.json": {"max_seq_length": MAX_SENTENCE_TOKENS},
    }.items():
        (folder / name).write_text(json.dumps(content))
    return folder
