from forebay.v1 import errors_pb2 as _errors_pb2
from forebay.v1 import media_pb2 as _media_pb2
from forebay.v1 import model_pb2 as _model_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SequenceFinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEQUENCE_FINISH_REASON_UNSPECIFIED: _ClassVar[SequenceFinishReason]
    SEQUENCE_FINISH_REASON_STOP: _ClassVar[SequenceFinishReason]
    SEQUENCE_FINISH_REASON_LENGTH: _ClassVar[SequenceFinishReason]
SEQUENCE_FINISH_REASON_UNSPECIFIED: SequenceFinishReason
SEQUENCE_FINISH_REASON_STOP: SequenceFinishReason
SEQUENCE_FINISH_REASON_LENGTH: SequenceFinishReason

class SessionRequest(_message.Message):
    __slots__ = ("hello", "submit", "abort", "renew", "chunk")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    submit: Submit
    abort: Abort
    renew: Renew
    chunk: TensorChunk
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., submit: _Optional[_Union[Submit, _Mapping]] = ..., abort: _Optional[_Union[Abort, _Mapping]] = ..., renew: _Optional[_Union[Renew, _Mapping]] = ..., chunk: _Optional[_Union[TensorChunk, _Mapping]] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("welcome", "accepted", "rejected", "step", "aborted", "draining", "media_wanted", "media_credit")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ABORTED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    MEDIA_WANTED_FIELD_NUMBER: _ClassVar[int]
    MEDIA_CREDIT_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    accepted: Accepted
    rejected: Rejected
    step: StepFrame
    aborted: Aborted
    draining: Draining
    media_wanted: MediaWanted
    media_credit: MediaCredit
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., rejected: _Optional[_Union[Rejected, _Mapping]] = ..., step: _Optional[_Union[StepFrame, _Mapping]] = ..., aborted: _Optional[_Union[Aborted, _Mapping]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ..., media_wanted: _Optional[_Union[MediaWanted, _Mapping]] = ..., media_credit: _Optional[_Union[MediaCredit, _Mapping]] = ...) -> None: ...

class Fingerprint(_message.Message):
    __slots__ = ("model_digest", "tokenizer_digest", "processor_version", "vocab_size")
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PROCESSOR_VERSION_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    model_digest: str
    tokenizer_digest: str
    processor_version: int
    vocab_size: int
    def __init__(self, model_digest: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., processor_version: _Optional[int] = ..., vocab_size: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("frontend_id", "fingerprint")
    FRONTEND_ID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    frontend_id: str
    fingerprint: Fingerprint
    def __init__(self, frontend_id: _Optional[str] = ..., fingerprint: _Optional[_Union[Fingerprint, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("executor_id", "fingerprint", "lease_ms", "max_model_len", "architecture", "dtype", "eos_token_ids", "block_size", "num_blocks", "max_num_seqs", "prefix_caching", "tasks", "embedding_size", "num_classes", "num_token_types", "media_kinds", "media_window_bytes")
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHING_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_CLASSES_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKEN_TYPES_FIELD_NUMBER: _ClassVar[int]
    MEDIA_KINDS_FIELD_NUMBER: _ClassVar[int]
    MEDIA_WINDOW_BYTES_FIELD_NUMBER: _ClassVar[int]
    executor_id: str
    fingerprint: Fingerprint
    lease_ms: int
    max_model_len: int
    architecture: str
    dtype: _model_pb2.ModelDtype
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    block_size: int
    num_blocks: int
    max_num_seqs: int
    prefix_caching: bool
    tasks: _containers.RepeatedScalarFieldContainer[_model_pb2.ModelTask]
    embedding_size: int
    num_classes: int
    num_token_types: int
    media_kinds: _containers.RepeatedScalarFieldContainer[_media_pb2.MediaKind]
    media_window_bytes: int
    def __init__(self, executor_id: _Optional[str] = ..., fingerprint: _Optional[_Union[Fingerprint, _Mapping]] = ..., lease_ms: _Optional[int] = ..., max_model_len: _Optional[int] = ..., architecture: _Optional[str] = ..., dtype: _Optional[_Union[_model_pb2.ModelDtype, str]] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., block_size: _Optional[int] = ..., num_blocks: _Optional[int] = ..., max_num_seqs: _Optional[int] = ..., prefix_caching: _Optional[bool] = ..., tasks: _Optional[_Iterable[_Union[_model_pb2.ModelTask, str]]] = ..., embedding_size: _Optional[int] = ..., num_classes: _Optional[int] = ..., num_token_types: _Optional[int] = ..., media_kinds: _Optional[_Iterable[_Union[_media_pb2.MediaKind, str]]] = ..., media_window_bytes: _Optional[int] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("handle", "epoch", "prompt_token_ids", "sampling", "priority", "timeout_ms", "resumed", "cache_salt", "encoder_token_ids", "pooling", "media", "prompt_token_counts", "num_position_axes", "position_steps", "position_step_counts")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    ENCODER_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_COUNTS_FIELD_NUMBER: _ClassVar[int]
    NUM_POSITION_AXES_FIELD_NUMBER: _ClassVar[int]
    POSITION_STEPS_FIELD_NUMBER: _ClassVar[int]
    POSITION_STEP_COUNTS_FIELD_NUMBER: _ClassVar[int]
    handle: int
    epoch: int
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: SamplingParams
    priority: int
    timeout_ms: int
    resumed: _containers.RepeatedCompositeFieldContainer[ResumedSequence]
    cache_salt: bytes
    encoder_token_ids: _containers.RepeatedScalarFieldContainer[int]
    pooling: PoolingParams
    media: _containers.RepeatedCompositeFieldContainer[MediaItem]
    prompt_token_counts: _containers.RepeatedScalarFieldContainer[int]
    num_position_axes: int
    position_steps: _containers.RepeatedScalarFieldContainer[int]
    position_step_counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, handle: _Optional[int] = ..., epoch: _Optional[int] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping]] = ..., priority: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., resumed: _Optional[_Iterable[_Union[ResumedSequence, _Mapping]]] = ..., cache_salt: _Optional[bytes] = ..., encoder_token_ids: _Optional[_Iterable[int]] = ..., pooling: _Optional[_Union[PoolingParams, _Mapping]] = ..., media: _Optional[_Iterable[_Union[MediaItem, _Mapping]]] = ..., prompt_token_counts: _Optional[_Iterable[int]] = ..., num_position_axes: _Optional[int] = ..., position_steps: _Optional[_Iterable[int]] = ..., position_step_counts: _Optional[_Iterable[int]] = ...) -> None: ...

class MediaItem(_message.Message):
    __slots__ = ("kind", "digest", "tensors", "span_starts", "span_lengths")
    KIND_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    SPAN_STARTS_FIELD_NUMBER: _ClassVar[int]
    SPAN_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    kind: _media_pb2.MediaKind
    digest: bytes
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    span_starts: _containers.RepeatedScalarFieldContainer[int]
    span_lengths: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, kind: _Optional[_Union[_media_pb2.MediaKind, str]] = ..., digest: _Optional[bytes] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., span_starts: _Optional[_Iterable[int]] = ..., span_lengths: _Optional[_Iterable[int]] = ...) -> None: ...

class TensorHeader(_message.Message):
    __slots__ = ("name", "dtype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: _media_pb2.TensorType
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[_media_pb2.TensorType, str]] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class ResumedSequence(_message.Message):
    __slots__ = ("sequence_index", "token_ids", "finished")
    SEQUENCE_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    sequence_index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    finished: bool
    def __init__(self, sequence_index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., finished: _Optional[bool] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("max_tokens", "min_tokens", "n", "temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias_ids", "logit_bias_values", "bad_words", "allowed_token_ids", "stop_token_ids", "ignore_eos", "seed", "logprobs", "prompt_logprobs", "logprob_token_ids")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_VALUES_FIELD_NUMBER: _ClassVar[int]
    BAD_WORDS_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    min_tokens: int
    n: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias_ids: _containers.RepeatedScalarFieldContainer[int]
    logit_bias_values: _containers.RepeatedScalarFieldContainer[float]
    bad_words: _containers.RepeatedCompositeFieldContainer[TokenSequence]
    allowed_token_ids: _containers.RepeatedScalarFieldContainer[int]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    seed: int
    logprobs: int
    prompt_logprobs: int
    logprob_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., n: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., logit_bias_ids: _Optional[_Iterable[int]] = ..., logit_bias_values: _Optional[_Iterable[float]] = ..., bad_words: _Optional[_Iterable[_Union[TokenSequence, _Mapping]]] = ..., allowed_token_ids: _Optional[_Iterable[int]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: _Optional[bool] = ..., seed: _Optional[int] = ..., logprobs: _Optional[int] = ..., prompt_logprobs: _Optional[int] = ..., logprob_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class PoolingParams(_message.Message):
    __slots__ = ("task", "token_type_ids", "dimensions", "normalize", "activation", "num_instruction_tokens")
    TASK_FIELD_NUMBER: _ClassVar[int]
    TOKEN_TYPE_IDS_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    NUM_INSTRUCTION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    task: _model_pb2.ModelTask
    token_type_ids: _containers.RepeatedScalarFieldContainer[int]
    dimensions: int
    normalize: bool
    activation: bool
    num_instruction_tokens: int
    def __init__(self, task: _Optional[_Union[_model_pb2.ModelTask, str]] = ..., token_type_ids: _Optional[_Iterable[int]] = ..., dimensions: _Optional[int] = ..., normalize: _Optional[bool] = ..., activation: _Optional[bool] = ..., num_instruction_tokens: _Optional[int] = ...) -> None: ...

class TokenSequence(_message.Message):
    __slots__ = ("token_ids",)
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Abort(_message.Message):
    __slots__ = ("handle", "sequence_index")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_INDEX_FIELD_NUMBER: _ClassVar[int]
    handle: int
    sequence_index: int
    def __init__(self, handle: _Optional[int] = ..., sequence_index: _Optional[int] = ...) -> None: ...

class Renew(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TensorChunk(_message.Message):
    __slots__ = ("digest", "offset", "data")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    offset: int
    data: bytes
    def __init__(self, digest: _Optional[bytes] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class MediaWanted(_message.Message):
    __slots__ = ("handle", "digests")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    handle: int
    digests: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, handle: _Optional[int] = ..., digests: _Optional[_Iterable[bytes]] = ...) -> None: ...

class MediaCredit(_message.Message):
    __slots__ = ("num_bytes",)
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    num_bytes: int
    def __init__(self, num_bytes: _Optional[int] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("handle",)
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    handle: int
    def __init__(self, handle: _Optional[int] = ...) -> None: ...

class Rejected(_message.Message):
    __slots__ = ("handle", "reason", "message", "code", "retry_after_ms")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    handle: int
    reason: _errors_pb2.ErrorReason
    message: str
    code: int
    retry_after_ms: int
    def __init__(self, handle: _Optional[int] = ..., reason: _Optional[_Union[_errors_pb2.ErrorReason, str]] = ..., message: _Optional[str] = ..., code: _Optional[int] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class Aborted(_message.Message):
    __slots__ = ("handle", "was_running")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    WAS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    handle: int
    was_running: bool
    def __init__(self, handle: _Optional[int] = ..., was_running: _Optional[bool] = ...) -> None: ...

class Draining(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StepFrame(_message.Message):
    __slots__ = ("step", "handles", "epochs", "sequence_indexes", "token_indexes", "num_tokens", "token_ids", "finishes", "logprobs", "prompt_logprobs", "load", "cache_events", "prefix_hits", "pooled")
    STEP_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_INDEXES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_INDEXES_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISHES_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    CACHE_EVENTS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HITS_FIELD_NUMBER: _ClassVar[int]
    POOLED_FIELD_NUMBER: _ClassVar[int]
    step: int
    handles: _containers.RepeatedScalarFieldContainer[int]
    epochs: _containers.RepeatedScalarFieldContainer[int]
    sequence_indexes: _containers.RepeatedScalarFieldContainer[int]
    token_indexes: _containers.RepeatedScalarFieldContainer[int]
    num_tokens: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    finishes: _containers.RepeatedCompositeFieldContainer[SequenceFinish]
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[PromptLogprobs]
    load: Load
    cache_events: CacheEvents
    prefix_hits: _containers.RepeatedCompositeFieldContainer[PrefixHit]
    pooled: _containers.RepeatedCompositeFieldContainer[PoolingOutput]
    def __init__(self, step: _Optional[int] = ..., handles: _Optional[_Iterable[int]] = ..., epochs: _Optional[_Iterable[int]] = ..., sequence_indexes: _Optional[_Iterable[int]] = ..., token_indexes: _Optional[_Iterable[int]] = ..., num_tokens: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ..., finishes: _Optional[_Iterable[_Union[SequenceFinish, _Mapping]]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., prompt_logprobs: _Optional[_Iterable[_Union[PromptLogprobs, _Mapping]]] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., cache_events: _Optional[_Union[CacheEvents, _Mapping]] = ..., prefix_hits: _Optional[_Iterable[_Union[PrefixHit, _Mapping]]] = ..., pooled: _Optional[_Iterable[_Union[PoolingOutput, _Mapping]]] = ...) -> None: ...

class PoolingOutput(_message.Message):
    __slots__ = ("handle", "epoch", "first_row", "num_rows", "num_columns", "values", "finished")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROW_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    handle: int
    epoch: int
    first_row: int
    num_rows: int
    num_columns: int
    values: bytes
    finished: bool
    def __init__(self, handle: _Optional[int] = ..., epoch: _Optional[int] = ..., first_row: _Optional[int] = ..., num_rows: _Optional[int] = ..., num_columns: _Optional[int] = ..., values: _Optional[bytes] = ..., finished: _Optional[bool] = ...) -> None: ...

class SequenceFinish(_message.Message):
    __slots__ = ("handle", "epoch", "sequence_index", "reason", "stop_token_id")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_INDEX_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    handle: int
    epoch: int
    sequence_index: int
    reason: SequenceFinishReason
    stop_token_id: int
    def __init__(self, handle: _Optional[int] = ..., epoch: _Optional[int] = ..., sequence_index: _Optional[int] = ..., reason: _Optional[_Union[SequenceFinishReason, str]] = ..., stop_token_id: _Optional[int] = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("handle", "sequence_index", "token_index", "logprob", "rank", "top_ids", "top_logprobs")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_INDEX_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    handle: int
    sequence_index: int
    token_index: int
    logprob: float
    rank: int
    top_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, handle: _Optional[int] = ..., sequence_index: _Optional[int] = ..., token_index: _Optional[int] = ..., logprob: _Optional[float] = ..., rank: _Optional[int] = ..., top_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class PromptLogprobs(_message.Message):
    __slots__ = ("handle", "epoch", "first_position", "logprobs", "ranks", "top_ids", "top_logprobs", "num_top")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOP_FIELD_NUMBER: _ClassVar[int]
    handle: int
    epoch: int
    first_position: int
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    ranks: _containers.RepeatedScalarFieldContainer[int]
    top_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    num_top: int
    def __init__(self, handle: _Optional[int] = ..., epoch: _Optional[int] = ..., first_position: _Optional[int] = ..., logprobs: _Optional[_Iterable[float]] = ..., ranks: _Optional[_Iterable[int]] = ..., top_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ..., num_top: _Optional[int] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("num_running", "num_waiting", "num_used_blocks", "num_blocks", "num_preemptions", "num_waiting_tokens")
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_USED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_running: int
    num_waiting: int
    num_used_blocks: int
    num_blocks: int
    num_preemptions: int
    num_waiting_tokens: int
    def __init__(self, num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_used_blocks: _Optional[int] = ..., num_blocks: _Optional[int] = ..., num_preemptions: _Optional[int] = ..., num_waiting_tokens: _Optional[int] = ...) -> None: ...

class CacheEvents(_message.Message):
    __slots__ = ("stored", "removed")
    STORED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    stored: _containers.RepeatedScalarFieldContainer[int]
    removed: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, stored: _Optional[_Iterable[int]] = ..., removed: _Optional[_Iterable[int]] = ...) -> None: ...

class PrefixHit(_message.Message):
    __slots__ = ("handle", "num_tokens")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    handle: int
    num_tokens: int
    def __init__(self, handle: _Optional[int] = ..., num_tokens: _Optional[int] = ...) -> None: ...
