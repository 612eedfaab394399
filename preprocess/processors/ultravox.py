"""Ultravox (Fixie.ai, 2024): clips of any length, in windows of what a Whisper encoder reads at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from preprocess.media.decoded import Audio, DecodedMedia, Embeddings
from preprocess.media_item import EncodedPrompt, MediaItem, PlacedItem
from preprocess.processors.mel import read_mel
from preprocess.processors.placeholders import check_counts, is_expanded, place, replace_ids
from preprocess.processors.precomputed import embedded_item, rows_per_item, unusable
from preprocess.processors.processor import ProcessorFiles, PromptText
from preprocess.processors.registry import processor
from preprocess.processors.settings import Settings, audio_settings, model_settings
from preprocess.processors.tokens import feature_token
from preprocess.processors.vision_section import text_hidden_size

_MARKER = "<|audio|>"


class UltravoxProcessor:
    """The text around clips is tokenized piece by piece, and gets no <s> that it does not spell."""

    modalities = ("audio",)

    def __init__(self, files: ProcessorFiles) -> None:
        config, own = model_settings(files), Settings(files.processor, "processor_config.json")
        encoder = config.section("audio_config")
        self._hidden_size = text_hidden_size(config)
        self._mel = read_mel(audio_settings(files), encoder.integer("num_mel_bins", 80))
        self._window = 2 * encoder.integer("max_source_positions", 1500)  # frames
        self._frames_per_token = 2 * own.integer("stack_factor", config.integer("stack_factor", 8))
        self._marker = own("audio_placeholder", _MARKER)
        self._token_id = feature_token(files.tokenizer, self._marker, config("audio_token_index", None))
        self._feature_ids = {"audio": (self._token_id,)}

    @property
    def sample_rate(self) -> int:
        return self._mel.sample_rate

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        """Windows are cut from the spectrogram of the whole clip, each with tokens of its own."""
        if not isinstance(media, Audio):
            raise unusable(f"this model takes no {media.modality} items")
        hop, least = self._mel.hop_length, self._mel.n_fft // 2 + 1
        samples = np.pad(media.samples, (0, -len(media.samples) % hop))
        if len(samples) < least:
            raise unusable(
                f"a clip of {len(media.samples):,} samples is too short: it needs {least // hop * hop + 1:,}"
            )
        frames = self._mel.log_mel(samples)
        widths = [min(self._window, frames.shape[1] - start) for start in range(0, frames.shape[1], self._window)]
        return MediaItem(
            "audio", {"audio_values": frames}, sum(-(-width // self._frames_per_token) for width in widths)
        )

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        if embeddings.modality != "audio":
            raise unusable(f"this model takes no {embeddings.modality} items")
        return [embedded_item("audio", rows) for rows in rows_per_item(embeddings, self._hidden_size)]

    def chat_marker(self, modality: str, index: int) -> str:
        return self._marker

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        first, *others = prompt.text.split(prompt.write(self._marker))
        check_counts({"audio": len(others)}, items)
        token_ids, placed = prompt.encode(first, add_special_tokens=False), []
        for piece, item in zip(others, items, strict=True):
            placed.append(PlacedItem(item, ((len(token_ids), item.num_features),)))
            token_ids += [self._token_id] * item.num_features
            token_ids += prompt.encode(piece, add_special_tokens=False)
        return EncodedPrompt(token_ids, tuple(placed))

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        ids = list(token_ids)
        if items and not is_expanded(ids, items, self._feature_ids):
            markers = {"audio": [self._token_id]}
            ids = replace_ids(ids, items, markers, lambda item, _: [self._token_id] * item.num_features)
        return EncodedPrompt(ids, place(ids, items, self._feature_ids) if items else ())


@processor("UltravoxModel")
def ultravox(files: ProcessorFiles) -> UltravoxProcessor:
    return UltravoxProcessor(files)
