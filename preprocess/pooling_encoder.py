"""Owns how inputs to pool become ids: named prompts before texts, pairs in the tokenizer's own template, cuts that keep it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tokenizers

from forebay.errors import InvalidRequest
from forebay.v1 import prompt_pb2
from forebay.v1.errors_pb2 import ErrorReason
from preprocess.media_item import EncodedPrompt, PlacedItem
from preprocess.sentence_prompts import SentencePrompts
from preprocess.tokenizer import TextTokenizer, need_tokenizer


@dataclass(frozen=True, slots=True)
class PoolingInput:
    """What a model reads of one input."""

    token_ids: list[int]
    type_ids: list[int]  # the segment of each id; empty: all 0
    num_instruction_tokens: int = 0  # at the beginning, that a mean leaves out
    media: tuple[PlacedItem, ...] = ()
    positions: np.ndarray | None = None  # see EncodedPrompt


class PoolingEncoder:
    """Turns inputs and pairs into ids. `encode_prompt` is Preprocessor.encode_prompt. Threads may share one.

    `max_tokens` cuts what is longer; without it nothing is cut. Segments of texts are told only to models that have several,
    which `num_token_types` says: other models' tokenizers name segments too. Everything raises InvalidRequest
    (EMPTY_PROMPT, TOO_LONG, INVALID_FIELD) and FailedPrecondition (NO_TOKENIZER, CHAT_TEMPLATE).
    """

    def __init__(
        self,
        text_tokenizer: TextTokenizer | None,
        encode_prompt: Callable[..., EncodedPrompt],
        prompts: SentencePrompts,
    ) -> None:
        self._text, self._encode_prompt, self._prompts = text_tokenizer, encode_prompt, prompts

    def encode(
        self,
        prompt: prompt_pb2.Prompt,
        *,
        num_token_types: int,
        prompt_name: str = "",
        max_tokens: int | None = None,
        max_model_len: int | None = None,
    ) -> PoolingInput:
        """One input, cut to its last `max_tokens` tokens. `prompt_name` concerns texts alone.

        Chats and prompts with media that are not cut are refused as `encode_prompt` does where they are over `max_model_len`.

        A chat ends without the opening of the assistant's turn unless it asks for one: nobody is going to answer.
        """
        if prompt.HasField("decoder_token_ids"):
            raise InvalidRequest("this model has no encoder, and so no prompt of the decoder beside the prompt")
        kind = prompt.WhichOneof("kind")
        if kind == "chat" or prompt.media or prompt.parse_special_tokens:
            return self._input(self.whole_prompt(prompt, prompt_name), max_tokens, max_model_len)
        if kind == "text" and prompt.text:
            return self._encode_text(prompt.text, self._prompts.text(prompt_name), num_token_types, max_tokens)
        if prompt_name:
            raise InvalidRequest("named prompts stand before texts, and this input is none")
        if kind == "token_ids" and prompt.token_ids.ids:
            type_ids = list(prompt.token_ids.type_ids)
            return PoolingInput(_end(list(prompt.token_ids.ids), max_tokens), _end(type_ids, max_tokens))
        return self._input(prompt, max_tokens, max_model_len)

    def whole_prompt(self, prompt: prompt_pb2.Prompt, prompt_name: str) -> prompt_pb2.Prompt:
        """A chat, or a prompt with media or in the model's own format, as it is encoded here: like one to be continued."""
        kind, whole = prompt.WhichOneof("kind"), prompt_pb2.Prompt()
        whole.CopyFrom(prompt)
        if kind == "text":
            name = self._prompts.text(prompt_name)
            if name and not self._prompts.counted:
                raise InvalidRequest("this checkpoint's named prompts stand before plain texts alone")
            whole.text = name + prompt.text
        elif prompt_name:
            raise InvalidRequest("named prompts stand before texts, and this input is none")
        if kind == "chat" and not prompt.chat.HasField("add_generation_prompt"):
            whole.chat.add_generation_prompt = False
        return whole

    def encode_pair(
        self,
        query: prompt_pb2.Prompt,
        document: prompt_pb2.Prompt,
        *,
        num_token_types: int,
        max_tokens: int | None = None,
    ) -> PoolingInput:
        """Two texts, read together; a cut takes the document's end away."""
        for prompt in (query, document):
            if prompt.WhichOneof("kind") != "text":
                raise InvalidRequest(
                    "this model reads query and document together: send texts, or each pair whole, as token ids"
                )
            if prompt.media or prompt.parse_special_tokens:
                raise InvalidRequest("this model reads query and document together: they are plain text alone")
            if not prompt.text:
                raise InvalidRequest("a text of the pair is empty", ErrorReason.ERROR_REASON_EMPTY_PROMPT)
        tokenizer = need_tokenizer(self._text)
        first, second = tokenizer.encode_parts(query.text, document.text)
        if max_tokens is not None:
            room = max_tokens - len(first) - tokenizer.num_added_tokens(pair=True)
            if room < 1:
                raise InvalidRequest(
                    f"the query has {len(first):,} tokens, which leaves no room for a document in {max_tokens:,}",
                    ErrorReason.ERROR_REASON_TOO_LONG,
                )
            second.truncate(room)
        joined = tokenizer.join(first, second)
        return PoolingInput(joined.ids, _types(joined, num_token_types))

    def _input(self, prompt: prompt_pb2.Prompt, max_tokens: int | None, max_model_len: int | None) -> PoolingInput:
        limit = max_model_len if max_tokens is None else None  # what is cut may be long
        encoded = self._encode_prompt(prompt, max_tokens=limit).end(max_tokens)
        return PoolingInput(encoded.token_ids, [], media=encoded.media, positions=encoded.positions)

    def _encode_text(self, text: str, prompt: str, num_token_types: int, max_tokens: int | None) -> PoolingInput:
        tokenizer = need_tokenizer(self._text)
        (part,) = tokenizer.encode_parts(prompt + text)
        num_cut = 0
        if max_tokens is not None:
            room = max_tokens - tokenizer.num_added_tokens(pair=False)
            if room < 1:
                raise InvalidRequest(
                    f"truncate_prompt_tokens is {max_tokens}; the tokenizer adds {max_tokens - room} tokens to a text"
                )
            num_cut = max(0, len(part) - room)
            part.truncate(room, direction="left")
        joined = tokenizer.join(part)
        if not joined.ids:
            raise InvalidRequest("the prompt has no tokens", ErrorReason.ERROR_REASON_EMPTY_PROMPT)
        num_instruction_tokens = 0
        if prompt and not self._prompts.counted:
            num_leading = [*joined.special_tokens_mask, 0].index(0)  # of the tokenizer, such as [CLS]
            num_instruction_tokens = num_leading + max(0, len(tokenizer.encode_parts(prompt)[0]) - num_cut)
        return PoolingInput(joined.ids, _types(joined, num_token_types), num_instruction_tokens)


def _end(values: list[int], max_tokens: int | None) -> list[int]:
    return values if max_tokens is None else values[-max_tokens:]


def _types(encoding: tokenizers.Encoding, num_token_types: int) -> list[int]:
    return encoding.type_ids if num_token_types > 1 else []
