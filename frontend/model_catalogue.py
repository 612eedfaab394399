"""Owns what the frontend serves: the names clients may ask for, and ModelService."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from forebay.errors import NotFound
from forebay.v1 import model_pb2 as api
from frontend.dispatcher import Dispatcher

MAX_SHOWN_NAME = 128


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a frontend knows of its model without an executor. `names[0]` is the one it goes by."""

    names: tuple[str, ...]
    architecture: str
    model_digest: str
    preprocessor: Any  # preprocess.preprocessor.Preprocessor

    def check_name(self, name: str) -> None:
        """Raises NotFound unless the name is one of ours; empty is."""
        if name and name not in self.names:
            raise NotFound(f"no model {name[:MAX_SHOWN_NAME]!r} is served here")

    def labels_of(self, num_classes: int) -> tuple[str, ...]:
        """The classes' names; none where the executors tell another number of classes apart than the checkpoint names."""
        labels = self.preprocessor.class_labels
        return labels if len(labels) == num_classes else ()


class ModelService:
    """forebay.v1.ModelService."""

    def __init__(self, model: ServedModel, dispatcher: Dispatcher, check_open: Callable[[], None]) -> None:
        self._model, self._dispatcher, self._check_open = model, dispatcher, check_open

    async def ListModels(
        self, request: api.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> api.ListModelsResponse:
        """Every served name, with the same model behind it."""
        self._check_open()
        return api.ListModelsResponse(models=[self._describe(name) for name in sorted(self._model.names)])

    async def GetModel(self, request: api.GetModelRequest, context: grpc.aio.ServicerContext) -> api.GetModelResponse:
        """One served name."""
        self._check_open()
        self._model.check_name(request.model)
        return api.GetModelResponse(model=self._describe(request.model or self._model.names[0]))

    def _describe(self, name: str) -> api.Model:
        preprocessor, facts = self._model.preprocessor, self._dispatcher.facts
        model = api.Model(
            name=name,
            architecture=self._model.architecture,
            has_tokenizer=preprocessor.has_tokenizer,
            has_chat_template=preprocessor.has_chat_template,
            eos_token_ids=preprocessor.eos_token_ids,
            default_sampling=preprocessor.default_sampling,
            model_digest=self._model.model_digest,
            num_executors=self._dispatcher.num_ready,
        )
        if facts is not None:
            model.max_model_len, model.vocab_size, model.dtype = facts.max_model_len, facts.vocab_size, facts.dtype
            model.eos_token_ids[:] = facts.eos_token_ids
            model.tasks[:] = facts.tasks
            model.embedding_size = facts.embedding_size
            model.labels[:] = self._model.labels_of(facts.num_classes)
        return model
