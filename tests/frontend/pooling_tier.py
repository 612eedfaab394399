"""Owns what tests of pooling share: executors that pool, a tokenizer with pairs, and what must come of an input."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from tokenizers import Tokenizer, processors

from forebay.v1 import prompt_pb2
from forebay.v1.model_pb2 import MODEL_TASK_CLASSIFY, MODEL_TASK_EMBED, MODEL_TASK_REWARD, MODEL_TASK_SCORE
from preprocess.preprocessor import Preprocessor
from preprocess.sentence_prompts import SentencePrompts
from preprocess.tokenizer import TextTokenizer
from tests.frontend.fake_executor import FakeExecutor, pooled_at
from tests.preprocess.tokenizer_zoo import tokenizer_of

SIZE = 12
PROMPTS = SentencePrompts({"query": "hello my ", "nothing": ""})


def with_pairs() -> Tokenizer:
    """A tokenizer as BERT has it: [CLS] A [SEP] B [SEP], whose B is segment 1."""
    tokenizer = tokenizer_of("wordpiece")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def preprocessor_of(
    prompts: SentencePrompts | None = None, tokenizer: Tokenizer | None = None, labels: tuple[str, ...] = ()
) -> Preprocessor:
    text = TextTokenizer(tokenizer or with_pairs(), named_tokens={}, chat_template=None)
    return Preprocessor(text, sentence_prompts=prompts, class_labels=labels)


def executor_of(task: int, *others: int, **options: Any) -> FakeExecutor:
    return FakeExecutor(**{"auto": True, "num_token_types": 2, "tasks": (task, *others), **options})


embedder = functools.partial(executor_of, MODEL_TASK_EMBED, embedding_size=SIZE)
classifier = functools.partial(executor_of, MODEL_TASK_CLASSIFY, num_classes=3)
reranker = functools.partial(executor_of, MODEL_TASK_CLASSIFY, MODEL_TASK_SCORE, num_classes=1)
rewarder = functools.partial(executor_of, MODEL_TASK_REWARD, num_classes=2)


def ids_prompt(*ids: int, types: tuple[int, ...] = ()) -> prompt_pb2.Prompt:
    return prompt_pb2.Prompt(token_ids=prompt_pb2.TokenIds(ids=ids, type_ids=types))


def text_prompt(text: str) -> prompt_pb2.Prompt:
    return prompt_pb2.Prompt(text=text)


def vector_of(token_ids: list[int], size: int = SIZE) -> np.ndarray:
    """What an executor gives for a whole input."""
    return np.array([pooled_at(token_ids, len(token_ids) - 1, column) for column in range(size)], np.float32)
