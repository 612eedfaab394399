"""The errors that users meet: each type is one gRPC code, each instance one reason from the public enum."""

from __future__ import annotations

from forebay.v1.errors_pb2 import ErrorReason

DOMAIN = "forebay"

EXIT_BAD_CONFIG = 78  # EX_CONFIG of sysexits.h: restarting the process will not help


class ForebayError(Exception):
    """An error with a gRPC status code and a reason.

    `fields` are (field path, what is wrong with it) pairs for google.rpc.BadRequest; `retry_after_ms` says when trying
    again can help. The message is shown to clients: it names values and limits, never prompts, paths or addresses.
    """

    code = "INTERNAL"
    default_reason = ErrorReason.ERROR_REASON_INTERNAL

    def __init__(
        self,
        message: str,
        reason: int | None = None,
        *,
        fields: tuple[tuple[str, str], ...] = (),
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = self.default_reason if reason is None else reason
        self.fields = fields
        self.retry_after_ms = retry_after_ms

    @property
    def reason_name(self) -> str:
        """The reason as google.rpc.ErrorInfo carries it, e.g. "TOO_LONG"."""
        return ErrorReason.Name(self.reason).removeprefix("ERROR_REASON_")


class InvalidRequest(ForebayError):
    """The request can never succeed as it is."""

    code = "INVALID_ARGUMENT"
    default_reason = ErrorReason.ERROR_REASON_INVALID_FIELD


class NotFound(ForebayError):
    """What the request names is not here."""

    code = "NOT_FOUND"
    default_reason = ErrorReason.ERROR_REASON_MODEL_NOT_FOUND


class AlreadyExists(ForebayError):
    """The request's name is in use."""

    code = "ALREADY_EXISTS"
    default_reason = ErrorReason.ERROR_REASON_DUPLICATE_REQUEST


class ResourceExhausted(ForebayError):
    """A limit that depends on load is reached."""

    code = "RESOURCE_EXHAUSTED"
    default_reason = ErrorReason.ERROR_REASON_QUEUE_FULL


class NotOffered(ForebayError):
    """The server does not do this."""

    code = "UNIMPLEMENTED"
    default_reason = ErrorReason.ERROR_REASON_NOT_OFFERED


class UnknownArchitecture(NotOffered):
    """The checkpoint's architecture is in no family."""

    default_reason = ErrorReason.ERROR_REASON_UNKNOWN_ARCHITECTURE


class FailedPrecondition(ForebayError):
    """What is served does not allow the request."""

    code = "FAILED_PRECONDITION"
    default_reason = ErrorReason.ERROR_REASON_FINGERPRINT_MISMATCH


class CheckpointError(FailedPrecondition):
    """The checkpoint cannot be read, or does not fit its own config. The message names the file and the tensor."""

    default_reason = ErrorReason.ERROR_REASON_BAD_CHECKPOINT


class Unavailable(ForebayError):
    """Nobody can serve the request now."""

    code = "UNAVAILABLE"
    default_reason = ErrorReason.ERROR_REASON_NO_EXECUTOR


class DeadlineExceeded(ForebayError):
    """The deadline passed."""

    code = "DEADLINE_EXCEEDED"
    default_reason = ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED


class Cancelled(ForebayError):
    """The caller went away."""

    code = "CANCELLED"
    default_reason = ErrorReason.ERROR_REASON_CANCELLED


class Aborted(ForebayError):
    """The request was ended while it ran, and would end so again."""

    code = "ABORTED"
    default_reason = ErrorReason.ERROR_REASON_NUMERIC


_BY_CODE = {
    kind.code: kind
    for kind in (
        InvalidRequest, NotFound, AlreadyExists, ResourceExhausted, NotOffered, FailedPrecondition, Unavailable,
        DeadlineExceeded, Cancelled, Aborted, ForebayError,
    )
}  # fmt: skip


def error_of(code: str, message: str, reason: int, retry_after_ms: int | None = None) -> ForebayError:
    """The error with this gRPC code name, for errors that arrive over the wire."""
    return _BY_CODE.get(code, ForebayError)(message, reason, retry_after_ms=retry_after_ms)
