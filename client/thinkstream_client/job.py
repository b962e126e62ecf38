"""One job, as the blocking client shows it."""

from __future__ import annotations

from collections.abc import Iterator

from .core.chunk_stream import ChunkStream
from .core.client_core import ClientCore
from .core.effects import Run
from .core.history import JobHistory
from .core.submission import Submission
from .outcome import Finish, JobResult, JobStatus, TokenChunk
from .protocol.functions import JobInfo
from .records import JobRef


class TokenStream(Iterator[TokenChunk]):
    """A job's tokens as they come. Iterating ends with the job; ``finish`` then says how it ended.

    A job that failed, expired or was cancelled yields what there is and then raises. A chunk without tokens
    at the end carries text that was held back.
    """

    def __init__(self, run: Run, core: ClientCore, stream: ChunkStream) -> None:
        self._run, self._core, self._stream = run, core, stream

    @property
    def finish(self) -> Finish | None:
        """The job's end, once it was read."""
        return self._stream.finish

    def __next__(self) -> TokenChunk:
        chunk = self._run(self._core.next_chunk(self._stream))
        if chunk is None:
            raise StopIteration
        return chunk


class Job:
    """One job. Holds its payload where this process submitted it, so that it can be submitted again."""

    def __init__(self, run: Run, core: ClientCore, ref: JobRef, submission: Submission | None = None) -> None:
        self._run, self._core, self._ref, self._submission = run, core, ref, submission

    def __repr__(self) -> str:
        return f"Job(id={self.id!r}, tenant={self.tenant!r})"

    @property
    def id(self) -> str:
        """Its id, unique within the tenant."""
        return self._ref.job_id

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self._ref.tenant

    def status(self) -> JobStatus:
        """Returns where it is in its life.

        Raises:
            JobNotFound: There is no such job.
        """
        return self._run(self._core.status(self._ref))

    def info(self) -> JobInfo:
        """Returns all that the queue knows about it: attempts, owner, times, resolved sampling.

        Raises:
            JobNotFound: There is no such job.
        """
        return self._run(self._core.info(self._ref))

    def history(self) -> JobHistory:
        """Returns which replicas had it and how it ended, with usage and timings; reads the whole result.

        It is empty for a job that nobody has taken up, and once the result has expired.
        """
        return self._run(self._core.history(self._ref))

    def stream(self, from_index: int = 0, *, timeout_s: float | None = None) -> TokenStream:
        """Returns its tokens as they come, from any token on, also long after they came.

        Args:
            from_index: Tokens that the caller has already.
            timeout_s: How long to wait for the end.

        Raises:
            InvalidRequest: ``from_index`` or ``timeout_s`` is outside its range.

        Iterating raises:
            InvalidRequest: The result ended before ``from_index``.
            JobNotFound, ResultExpired: There is nothing to read.
            JobFailed, PromptTooLong, JobExpired, JobCancelled: How it ended, after the last token.
            StreamForked: Redis lost tokens that were read, and others followed.
            ServiceUnavailable: The connection was lost and did not come back.
            TimeoutError: The end did not come in time; iterating may go on.
        """
        stream = self._core.stream(self._ref, self._submission, from_index=from_index, timeout_s=timeout_s)
        return TokenStream(self._run, self._core, stream)

    def text(self, *, timeout_s: float | None = None) -> str:
        """Waits for the end and returns the text; raises as ``result`` does."""
        return self.result(timeout_s=timeout_s).text

    def result(self, confirm: bool = False, *, timeout_s: float | None = None) -> JobResult:
        """Waits for the end and returns the whole result.

        Args:
            confirm: Return only what a crash of Redis cannot take back. Under ``appendfsync everysec`` that
                takes two and a half seconds more; so it does where this user may not ask by CONFIG GET.
            timeout_s: How long to wait for the end, and for its confirmation.

        Raises:
            JobNotFound, ResultExpired: There is nothing to read.
            JobFailed, PromptTooLong, JobExpired, JobCancelled: How it ended; ``partial`` holds what there is.
            ServiceUnavailable: The connection was lost and did not come back, or nothing was synced.
            TimeoutError: The end did not come, or was not confirmed, in time.
            ConfigError: ``confirm`` was asked of a server that keeps no append-only file, never syncs it, or,
                being older than 7.2, does not tell its user when.
            InvalidRequest: ``timeout_s`` is outside its range.
        """
        return self._run(self._core.result(self._ref, self._submission, confirm=confirm, timeout_s=timeout_s))

    def cancel(self) -> JobStatus:
        """Cancels it at once unless it has ended, and returns its status.

        Raises:
            JobNotFound: There is no such job.
        """
        return self._run(self._core.cancel(self._ref))
