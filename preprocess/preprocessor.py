"""Owns what the CPU tier knows of a model: tokenizer, chat template, processor, defaults. Turns prompts into ids and items."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from forebay.errors import FailedPrecondition, InvalidRequest
from forebay.v1 import prompt_pb2, sampling_pb2
from forebay.v1.errors_pb2 import ErrorReason
from preprocess.chat import ChatTemplate
from preprocess.chat_messages import ChatMedia, check, media_parts
from preprocess.generation_config import decoder_start_token_id, default_sampling, eos_token_ids
from preprocess.json_files import read_json, read_model_config
from preprocess.media.preparer import MediaPreparer, PlacedMedia
from preprocess.media.settings import MediaSettings
from preprocess.media_item import EncodedPrompt
from preprocess.pooling_encoder import PoolingEncoder
from preprocess.processors.processor import PromptText
from preprocess.processors.registry import load_processor
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
        media: MediaPreparer | None = None,
        template_problem: str = "the model's tokenizer comes without a chat template: send text or token ids",
    ) -> None:
        self._text = text_tokenizer
        self._chat = chat_template
        self._template_problem = template_problem
        self._media = media  # None where the model takes text alone
        self.eos_token_ids = eos_token_ids
        self._decoder_start_token_id = decoder_start_token_id
        self.default_sampling = default_sampling or sampling_pb2.SamplingParams()
        self.class_labels = class_labels  # by number; empty where the checkpoint names none
        self.pooling = PoolingEncoder(text_tokenizer, self.encode_prompt, sentence_prompts or SentencePrompts())

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        tokenizer_folder: Path | None = None,
        trust_remote_code: bool = False,
        media: MediaSettings | None = None,
        download_dir: str | None = None,
        hf_overrides: Mapping[str, Any] | None = None,
    ) -> Preprocessor:
        """Reads a checkpoint folder, its config.json with `hf_overrides`; one without tokenizer files serves token ids only.

        Raises CheckpointError for files that cannot be read or lack what must be there, and FailedPrecondition for a
        tokenizer that cannot be converted and for a chat template that costs too much. With `trust_remote_code`, a
        tokenizer that is code of the folder raises NotOffered: no such code is ever run.
        """
        text_folder = Path(tokenizer_folder or folder)
        tokenizer = load_tokenizer(text_folder, trust_remote_code=trust_remote_code)
        config = read_model_config(Path(folder), hf_overrides)
        generation = read_json(Path(folder) / "generation_config.json")
        chat, problem = None, {}
        if tokenizer is not None and tokenizer.chat_template:
            try:
                chat = ChatTemplate(tokenizer.chat_template, tokenizer, shared_renderer())
            except TemplateSyntaxError as error:
                logger.warning("no chat is served: %s", error.message)
                problem = {"template_problem": error.message}
        processor = load_processor(Path(folder), tokenizer, download_dir=download_dir, hf_overrides=hf_overrides)
        return cls(
            tokenizer,
            chat,
            eos_token_ids=eos_token_ids(generation, config, tokenizer),
            default_sampling=default_sampling(generation),
            decoder_start_token_id=decoder_start_token_id(generation, config),
            sentence_prompts=read_sentence_prompts(Path(folder)),
            class_labels=_class_labels(config),
            media=None if processor is None else (media or MediaSettings()).preparer(processor),
            **problem,
        )

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be served."""
        return self._text is not None

    @property
    def modalities(self) -> tuple[str, ...]:
        """The kinds of media that the model takes beside text, of image, video and audio."""
        return self._media.processor.modalities if self._media else ()

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
        """The ids of `encode_prompt` alone."""
        return self.encode_prompt(prompt, add_special_tokens=add_special_tokens, max_tokens=max_tokens).token_ids

    def encode_prompt(
        self, prompt: prompt_pb2.Prompt, *, add_special_tokens: bool = True, max_tokens: int | None = None
    ) -> EncodedPrompt:
        """A prompt's ids, with its media in their places; `add_special_tokens` (<s> and its like) concerns text: chat
        templates write their own.

        With `max_tokens`, text that must become more ids than that is refused before it is tokenized, media that takes more before
        the rest of it is decoded, and a prompt that is longer with its media at the end. Raises InvalidRequest (EMPTY_PROMPT,
        TOO_LONG, INVALID_FIELD, MEDIA_*) and FailedPrecondition (NO_TOKENIZER, CHAT_TEMPLATE).
        """
        kind, media = prompt.WhichOneof("kind"), _media_of(prompt)
        _check_form(prompt, kind)
        self._check_takes(media)
        if kind == "token_ids":
            encoded = self._expanded_ids(list(prompt.token_ids.ids), media, max_tokens)
        elif kind == "chat":
            self._check_length((part.text for m in prompt.chat.messages for part in m.content), max_tokens)
            encoded = self._encode_chat(prompt.chat, media, max_tokens)[1]
        else:
            if not prompt.text and not media:
                raise InvalidRequest("the prompt is empty", ErrorReason.ERROR_REASON_EMPTY_PROMPT)
            need_tokenizer(self._text)
            self._check_length([prompt.text], max_tokens)
            encoded = self._encode_text(prompt, media, add_special_tokens, max_tokens)
        if not encoded.token_ids:
            raise InvalidRequest("the prompt has no tokens", ErrorReason.ERROR_REASON_EMPTY_PROMPT)
        if encoded.media and max_tokens is not None and len(encoded.token_ids) > max_tokens:
            num_tokens = f"{len(encoded.token_ids):,} tokens"
            raise InvalidRequest(
                f"the prompt has {num_tokens} with its media; the model takes {max_tokens:,}",
                ErrorReason.ERROR_REASON_TOO_LONG,
                fields=(("prompt", f"has {num_tokens}"),),
            )
        return encoded

    def _check_takes(self, media: PlacedMedia) -> None:
        if media and self._media is None:
            problem = "this model takes text alone"
            fields = tuple((path, problem) for path, _ in media)
            raise InvalidRequest(f"{media[0][0]}: {problem}", ErrorReason.ERROR_REASON_MEDIA_UNUSABLE, fields=fields)

    def _expanded_ids(self, token_ids: list[int], media: PlacedMedia, max_tokens: int | None) -> EncodedPrompt:
        if not media:
            return EncodedPrompt(token_ids)
        return self._media.processor.expand_ids(token_ids, self._media.items(media, max_tokens))

    def _encode_text(
        self, prompt: prompt_pb2.Prompt, media: PlacedMedia, add_special_tokens: bool, max_tokens: int | None
    ) -> EncodedPrompt:
        tokenizer, own_format = need_tokenizer(self._text), prompt.parse_special_tokens
        if self._media is None or not (media or own_format):
            encode = tokenizer.encode if own_format else tokenizer.encode_user_text
            return EncodedPrompt(encode(prompt.text, add_special_tokens=add_special_tokens))

        def encode(text: str, special: bool) -> list[int]:
            if own_format:
                return tokenizer.encode(text, add_special_tokens=special)
            return tokenizer.encode_disguised(text, add_special_tokens=special)

        write = {} if own_format else {"write": tokenizer.disguise}
        text = PromptText(prompt.text, encode=encode, adds_special_tokens=add_special_tokens, **write)
        return self._media.processor.expand_text(text, self._media.items(media, max_tokens))

    def _encode_chat(
        self, chat: prompt_pb2.Chat, media: PlacedMedia, max_tokens: int | None = None
    ) -> tuple[str, EncodedPrompt]:
        """The conversation as the chat template writes it, and what becomes of it."""
        need_tokenizer(self._text)
        if self._chat is None:
            raise FailedPrecondition(self._template_problem, ErrorReason.ERROR_REASON_CHAT_TEMPLATE)
        if not media:
            text, token_ids = self._chat.render(chat)
            return text, EncodedPrompt(token_ids)
        items = self._media.prepare(media, max_tokens)
        processor = self._media.processor
        rendered = self._chat.prompt(
            chat, ChatMedia(processor.modalities, [len(found) for found in items], processor.chat_marker)
        )
        return rendered.text, processor.expand_text(rendered.prompt, list(itertools.chain(*items)))

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
        """The conversation as the chat template writes it, and its ids; raises as `encode_prompt`."""
        media = list(media_parts(chat))
        self._check_takes(media)
        text, encoded = self._encode_chat(chat, media)
        return text, encoded.token_ids

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


def _media_of(prompt: prompt_pb2.Prompt) -> PlacedMedia:
    if prompt.WhichOneof("kind") == "chat":
        return list(media_parts(prompt.chat))
    return [(f"prompt.media[{index}]", media) for index, media in enumerate(prompt.media)]


def _check_form(prompt: prompt_pb2.Prompt, kind: str | None) -> None:
    """Raises InvalidRequest for fields that this form of a prompt does not have."""
    if kind == "token_ids" and prompt.token_ids.type_ids:
        problem = "token types are for pairs of texts to classify or score"
        raise InvalidRequest(problem, fields=(("prompt.token_ids.type_ids", "must be empty here"),))
    if kind == "chat":
        check(not prompt.media, "prompt.media", "must be empty: a chat has its media in its messages")
    if kind != "text":
        check(not prompt.parse_special_tokens, "prompt.parse_special_tokens", "is for prompts that are text")


def _class_labels(config: dict[str, Any]) -> tuple[str, ...]:
    """The names of classes that a config.json gives, by number; empty where it names none, or leaves one out."""
    labels = config.get("id2label")
    if not isinstance(labels, dict):
        return ()
    found = [labels.get(str(number)) for number in range(len(labels))]
    return tuple(found) if all(isinstance(label, str) for label in found) else ()
