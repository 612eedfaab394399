"""Owns what the CPU tier knows of a model: tokenizer, chat template, defaults. Turns prompts into ids."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from forebay.errors import FailedPrecondition, InvalidRequest
from forebay.v1 import prompt_pb2, sampling_pb2
from forebay.v1.errors_pb2 import ErrorReason
from preprocess.chat import ChatTemplate
from preprocess.generation_config import decoder_start_token_id, default_sampling, eos_token_ids
from preprocess.json_files import read_json
from preprocess.pooling_encoder import PoolingEncoder
from preprocess.sentence_prompts import SentencePrompts, read_sentence_prompts
from preprocess.template_renderer import TemplateSyntaxError, shared_renderer
from preprocess.tokenizer import TextTokenizer, need_tokenizer
from preprocess.tokenizer_files import load_tokenizer

logger = logging.getLogger(__name__)


class Preprocessor:
    """Turns prompts into token ids and back, as one checkpoint wants it. Threads may share one."""

    def __init__(
        self,
        text_tokenizer: TextTokenizer | None,
        chat_template: ChatTemplate | None = None,
        *,
        eos_token_ids: tuple[int, ...] = (),
        default_sampling: sampling_pb2.SamplingParams | None = None,
        decoder_start_token_id: int | None = None,
        sentence_prompts: SentencePrompts | None = None,
        class_labels: tuple[str, ...] = (),
        template_problem: str = "the model's tokenizer comes without a chat template: send text or token ids",
    ) -> None:
        self._text = text_tokenizer
        self._chat = chat_template
        self._template_problem = template_problem
        self.eos_token_ids = eos_token_ids
        self._decoder_start_token_id = decoder_start_token_id
        self.default_sampling = default_sampling or sampling_pb2.SamplingParams()
        self.class_labels = class_labels  # by number; empty where the checkpoint names none
        self.pooling = PoolingEncoder(text_tokenizer, self.encode, sentence_prompts or SentencePrompts())

    @classmethod
    def load(
        cls, folder: Path, *, tokenizer_folder: Path | None = None, trust_remote_code: bool = False
    ) -> Preprocessor:
        """Reads a checkpoint folder; one without tokenizer files serves token ids only.

        Raises CheckpointError for files that cannot be read or lack what must be there, and FailedPrecondition for a
        tokenizer that cannot be converted and for a chat template that costs too much. With `trust_remote_code`, a
        tokenizer that is code of the folder raises NotOffered: no such code is ever run.
        """
        text_folder = Path(tokenizer_folder or folder)
        tokenizer = load_tokenizer(text_folder, trust_remote_code=trust_remote_code)
        config, generation = read_json(Path(folder) / "config.json"), read_json(Path(folder) / "generation_config.json")
        chat, problem = None, {}
        if tokenizer is not None and tokenizer.chat_template:
            try:
                chat = ChatTemplate(tokenizer.chat_template, tokenizer, shared_renderer())
            except TemplateSyntaxError as error:
                logger.warning("no chat is served: %s", error.message)
                problem = {"template_problem": error.message}
        return cls(
            tokenizer,
            chat,
            eos_token_ids=eos_token_ids(generation, config, tokenizer),
            default_sampling=default_sampling(generation),
            decoder_start_token_id=decoder_start_token_id(generation, config),
            sentence_prompts=read_sentence_prompts(Path(folder)),
            class_labels=_class_labels(config),
            **problem,
        )

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be served."""
        return self._text is not None

    @property
    def has_chat_template(self) -> bool:
        """Whether chat messages can be served."""
        return self._chat is not None

    @property
    def tokenizer(self) -> tokenizers.Tokenizer | None:
        """The object that text is streamed with."""
        return self._text.backend if self._text else None

    @property
    def tokenizer_vocab_size(self) -> int:
        """The tokenizer's largest id plus one; 0 without a tokenizer."""
        return self._text.vocab_size if self._text else 0

    def encode(
        self, prompt: prompt_pb2.Prompt, *, add_special_tokens: bool = True, max_tokens: int | None = None
    ) -> list[int]:
        """A prompt's ids; `add_special_tokens` (<s> and its like) concerns text: chat templates write their own.

        With `max_tokens`, text that must become more ids than that is refused before it is tokenized.
        Raises InvalidRequest (EMPTY_PROMPT, TOO_LONG, INVALID_FIELD), FailedPrecondition (NO_TOKENIZER, CHAT_TEMPLATE).
        """
        kind = prompt.WhichOneof("kind")
        if prompt.media:
            problem = "this model takes text alone"
            raise InvalidRequest(problem, ErrorReason.ERROR_REASON_MEDIA_UNUSABLE, fields=(("prompt.media", problem),))
        if prompt.parse_special_tokens:
            problem = "is not offered yet"
            raise InvalidRequest(f"parse_special_tokens {problem}", fields=(("prompt.parse_special_tokens", problem),))
        if kind == "token_ids":
            if prompt.token_ids.type_ids:
                problem = "token types are for pairs of texts to classify or score"
                raise InvalidRequest(problem, fields=(("prompt.token_ids.type_ids", "must be empty here"),))
            return _not_empty(list(prompt.token_ids.ids))
        if kind == "chat":
            self._check_length((part.text for m in prompt.chat.messages for part in m.content), max_tokens)
            return _not_empty(self.render_chat(prompt.chat)[1])
        if not prompt.text:
            raise InvalidRequest("the prompt is empty", ErrorReason.ERROR_REASON_EMPTY_PROMPT)
        tokenizer = need_tokenizer(self._text)
        self._check_length([prompt.text], max_tokens)
        return _not_empty(tokenizer.encode_user_text(prompt.text, add_special_tokens=add_special_tokens))

    def decoder_prompt(self, prompt: prompt_pb2.Prompt) -> list[int] | None:
        """What an encoder-decoder's decoder begins with, while its encoder reads what `encode` gives; None for other models.

        Raises InvalidRequest if another model is given ids for a decoder.
        """
        given, start = list(prompt.decoder_token_ids.ids), self._decoder_start_token_id
        if start is None:
            if prompt.HasField("decoder_token_ids"):
                problem = "this model has no encoder, and so no prompt of the decoder beside the prompt"
                raise InvalidRequest(problem, fields=(("prompt.decoder_token_ids", "must be absent for this model"),))
            return None
        return given if given[:1] == [start] else [start, *given]

    def render_chat(self, chat: prompt_pb2.Chat) -> tuple[str, list[int]]:
        """The conversation as the chat template writes it, and its ids; raises as `encode`."""
        need_tokenizer(self._text)
        if self._chat is None:
            raise FailedPrecondition(self._template_problem, ErrorReason.ERROR_REASON_CHAT_TEMPLATE)
        return self._chat.render(chat)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ids, as it is: `clean_up_tokenization_spaces` of a checkpoint is not applied."""
        return need_tokenizer(self._text).decode(token_ids, skip_special_tokens=skip_special_tokens)

    def tokens(self, token_ids: Sequence[int]) -> list[str]:
        """Each id as the vocabulary writes it; empty for ids that the tokenizer does not know."""
        return need_tokenizer(self._text).tokens(token_ids)

    def bad_word_ids(self, text: str) -> list[list[int]]:
        """The ids of a word as it starts a text, as it follows a space and as it follows a line break, each once."""
        tokenizer = need_tokenizer(self._text)

        def encode(piece: str) -> list[int]:
            return tokenizer.encode_user_text(piece, add_special_tokens=False)

        found, word = [encode(text)], text.lstrip()
        for context, spelled in (("a", f" {word}"), ("\n", word)):
            before, whole = encode(context), encode(context + spelled)
            if whole[: len(before)] == before:  # else they merged, and the word has no ids of its own there
                found.append(whole[len(before) :])
        return [list(ids) for ids in dict.fromkeys(map(tuple, found)) if ids]

    def _check_length(self, texts: Sequence[str], max_tokens: int | None) -> None:
        limit = self._text.max_text_bytes(max_tokens) if self._text and max_tokens is not None else None
        if limit is None:
            return
        num_bytes = sum(len(text.encode()) for text in texts)
        if num_bytes > limit:
            raise InvalidRequest(
                f"the prompt has {num_bytes:,} bytes and so more than the {max_tokens:,} tokens that the model takes",
                ErrorReason.ERROR_REASON_TOO_LONG,
                fields=(("prompt", f"has {num_bytes:,} bytes"),),
            )


def _not_empty(token_ids: list[int]) -> list[int]:
    if not token_ids:
        raise InvalidRequest("the prompt has no tokens", ErrorReason.ERROR_REASON_EMPTY_PROMPT)
    return token_ids


def _class_labels(config: dict[str, Any]) -> tuple[str, ...]:
    """The names of classes that a config.json gives, by number; empty where it names none, or leaves one out."""
    labels = config.get("id2label")
    if not isinstance(labels, dict):
        return ()
    found = [labels.get(str(number)) for number in range(len(labels))]
    return tuple(found) if all(isinstance(label, str) for label in found) else ()
