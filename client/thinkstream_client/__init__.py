"""The client of thinkstream: submit jobs, stream their tokens, run batches.

    from thinkstream_client import Client

    with Client() as client:
        job = client.submit(messages=[("user", "What is the capital of France?")], temperature=0)
        for chunk in job.stream():
            print(chunk.text, end="", flush=True)

Importing it needs neither Redis's nor Ray's nor torch's package, and no event loop.
"""

from __future__ import annotations

from .aio import AsyncClient
from .aio_job import AsyncJob, AsyncTokenStream
from .batch import AsyncBatchJob, BatchJob
from .client import Client
from .core.batch_options import BatchProgress
from .core.compose import BatchItem
from .core.history import JobHistory, Tenure
from .core.results import BatchResult
from .core.service import ServiceStatus
from .errors import (
    BatchNotFound,
    CommandRefused,
    ConfigError,
    Conflict,
    Fenced,
    InvalidRequest,
    JobCancelled,
    JobError,
    JobExpired,
    JobFailed,
    JobNotFound,
    LetterNotFound,
    PromptTooLong,
    QueueFull,
    RecordInvalid,
    RequestError,
    ResultExpired,
    ServiceError,
    ServiceUnavailable,
    StreamForked,
    ThinkstreamError,
    WeightsError,
)
from .files.jsonl import read_lines, result_line
from .job import Job, TokenStream
from .outcome import Finish, FinishReason, JobResult, JobStatus, Timings, TokenChunk, TokenLogprobs, Usage
from .protocol.functions import BatchEnd, JobInfo, JobSummary, SessionInfo, TenantInfo
from .records import Message, Request, SamplingParams
from .settings import RedisSettings

__all__ = [
    "AsyncBatchJob",
    "AsyncClient",
    "AsyncJob",
    "AsyncTokenStream",
    "BatchEnd",
    "BatchItem",
    "BatchJob",
    "BatchNotFound",
    "BatchProgress",
    "BatchResult",
    "Client",
    "CommandRefused",
    "ConfigError",
    "Conflict",
    "Fenced",
    "Finish",
    "FinishReason",
    "InvalidRequest",
    "Job",
    "JobCancelled",
    "JobError",
    "JobExpired",
    "JobFailed",
    "JobHistory",
    "JobInfo",
    "JobNotFound",
    "JobResult",
    "JobStatus",
    "JobSummary",
    "LetterNotFound",
    "Message",
    "PromptTooLong",
    "QueueFull",
    "RecordInvalid",
    "RedisSettings",
    "Request",
    "RequestError",
    "ResultExpired",
    "SamplingParams",
    "ServiceError",
    "ServiceStatus",
    "ServiceUnavailable",
    "SessionInfo",
    "StreamForked",
    "TenantInfo",
    "Tenure",
    "ThinkstreamError",
    "Timings",
    "TokenChunk",
    "TokenLogprobs",
    "TokenStream",
    "Usage",
    "WeightsError",
    "read_lines",
    "result_line",
]
