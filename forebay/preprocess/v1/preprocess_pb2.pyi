from forebay.executor.v1 import executor_pb2 as _executor_pb2
from forebay.v1 import model_pb2 as _model_pb2
from forebay.v1 import prompt_pb2 as _prompt_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("fingerprint", "encodes_media")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ENCODES_MEDIA_FIELD_NUMBER: _ClassVar[int]
    fingerprint: _executor_pb2.Fingerprint
    encodes_media: bool
    def __init__(self, fingerprint: _Optional[_Union[_executor_pb2.Fingerprint, _Mapping]] = ..., encodes_media: _Optional[bool] = ...) -> None: ...

class EncodeRequest(_message.Message):
    __slots__ = ("prompt", "max_tokens", "keep_tokens", "dtype")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KEEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    prompt: _prompt_pb2.Prompt
    max_tokens: int
    keep_tokens: int
    dtype: _model_pb2.ModelDtype
    def __init__(self, prompt: _Optional[_Union[_prompt_pb2.Prompt, _Mapping]] = ..., max_tokens: _Optional[int] = ..., keep_tokens: _Optional[int] = ..., dtype: _Optional[_Union[_model_pb2.ModelDtype, str]] = ...) -> None: ...

class EncodeResponse(_message.Message):
    __slots__ = ("prompt", "chunk")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    prompt: EncodedPrompt
    chunk: _executor_pb2.TensorChunk
    def __init__(self, prompt: _Optional[_Union[EncodedPrompt, _Mapping]] = ..., chunk: _Optional[_Union[_executor_pb2.TensorChunk, _Mapping]] = ...) -> None: ...

class EncodedPrompt(_message.Message):
    __slots__ = ("token_ids", "media", "num_position_axes", "position_steps", "position_step_counts")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    NUM_POSITION_AXES_FIELD_NUMBER: _ClassVar[int]
    POSITION_STEPS_FIELD_NUMBER: _ClassVar[int]
    POSITION_STEP_COUNTS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    media: _containers.RepeatedCompositeFieldContainer[_executor_pb2.MediaItem]
    num_position_axes: int
    position_steps: _containers.RepeatedScalarFieldContainer[int]
    position_step_counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., media: _Optional[_Iterable[_Union[_executor_pb2.MediaItem, _Mapping]]] = ..., num_position_axes: _Optional[int] = ..., position_steps: _Optional[_Iterable[int]] = ..., position_step_counts: _Optional[_Iterable[int]] = ...) -> None: ...
