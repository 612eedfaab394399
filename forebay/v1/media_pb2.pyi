from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MediaKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEDIA_KIND_UNSPECIFIED: _ClassVar[MediaKind]
    MEDIA_KIND_IMAGE: _ClassVar[MediaKind]
    MEDIA_KIND_VIDEO: _ClassVar[MediaKind]
    MEDIA_KIND_AUDIO: _ClassVar[MediaKind]

class TensorType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TENSOR_TYPE_UNSPECIFIED: _ClassVar[TensorType]
    TENSOR_TYPE_UINT8: _ClassVar[TensorType]
    TENSOR_TYPE_INT32: _ClassVar[TensorType]
    TENSOR_TYPE_INT64: _ClassVar[TensorType]
    TENSOR_TYPE_FLOAT16: _ClassVar[TensorType]
    TENSOR_TYPE_BFLOAT16: _ClassVar[TensorType]
    TENSOR_TYPE_FLOAT32: _ClassVar[TensorType]
MEDIA_KIND_UNSPECIFIED: MediaKind
MEDIA_KIND_IMAGE: MediaKind
MEDIA_KIND_VIDEO: MediaKind
MEDIA_KIND_AUDIO: MediaKind
TENSOR_TYPE_UNSPECIFIED: TensorType
TENSOR_TYPE_UINT8: TensorType
TENSOR_TYPE_INT32: TensorType
TENSOR_TYPE_INT64: TensorType
TENSOR_TYPE_FLOAT16: TensorType
TENSOR_TYPE_BFLOAT16: TensorType
TENSOR_TYPE_FLOAT32: TensorType

class Media(_message.Message):
    __slots__ = ("kind", "data", "url", "digest", "samples", "embeddings", "frames_per_second", "sample_rate")
    KIND_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    kind: MediaKind
    data: bytes
    url: str
    digest: bytes
    samples: Tensor
    embeddings: Embeddings
    frames_per_second: float
    sample_rate: int
    def __init__(self, kind: _Optional[_Union[MediaKind, str]] = ..., data: _Optional[bytes] = ..., url: _Optional[str] = ..., digest: _Optional[bytes] = ..., samples: _Optional[_Union[Tensor, _Mapping]] = ..., embeddings: _Optional[_Union[Embeddings, _Mapping]] = ..., frames_per_second: _Optional[float] = ..., sample_rate: _Optional[int] = ...) -> None: ...

class Embeddings(_message.Message):
    __slots__ = ("values", "image_grid_thw", "video_grid_thw", "image_sizes")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_GRID_THW_FIELD_NUMBER: _ClassVar[int]
    VIDEO_GRID_THW_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[Tensor]
    image_grid_thw: Tensor
    video_grid_thw: Tensor
    image_sizes: Tensor
    def __init__(self, values: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., image_grid_thw: _Optional[_Union[Tensor, _Mapping]] = ..., video_grid_thw: _Optional[_Union[Tensor, _Mapping]] = ..., image_sizes: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: TensorType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[_Union[TensorType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...
