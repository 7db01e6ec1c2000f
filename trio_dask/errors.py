"""The public exception tree.

Everything that trio_dask itself raises derives from `TrioDaskError`. What a user's task raised arrives as the user's
own exception. Where Python has a fitting exception, ours derive from it as well, so that a script written for
`dask.distributed` catches what it expects: a timeout is a `TimeoutError`, a refused connection an `OSError`.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any


class TrioDaskError(Exception):
    """Base of every exception that trio_dask itself raises.

    Attributes: `remedy`, what to do about it, where the message ends with that; else it is empty.
    """

    remedy: str = ""

    def __init__(self, *args: object, remedy: str = "") -> None:
        super().__init__(*args)
        if remedy:
            self.remedy = remedy


class UsageError(TrioDaskError, ValueError):
    """Wrong input from the user; the message says what, where and how to mend it."""


class UnavailableError(TrioDaskError, OSError):
    """A file, a folder or a network interface that the user named is missing or denied on this machine."""


class AddressError(UsageError):
    """An address that cannot be understood."""


class ProtocolError(TrioDaskError):
    """A peer sent what the protocol does not allow. It ends that peer's connection and nothing else."""


class RefusedError(TrioDaskError, ConnectionError):
    """The other side answered the hello with a refusal; the message is its reason, naming both sides.

    Attributes: `kind`, a word for what it is about, such as "key", "encryption" or "version"; it may be empty.
    """

    def __init__(self, reason: str = "", kind: str = "", *, remedy: str = "") -> None:
        super().__init__(reason, remedy=remedy)
        self.kind = kind


class ProvenRefusal(RefusedError):
    """A refusal of a peer that has proved to have the cluster's key, or of one without a key to a caller without one.

    Any other refusal may come from a program that does not belong to the cluster.
    """


class NoScheduler(TrioDaskError, OSError):
    """No scheduler could be reached; the message classifies why (nothing listens, no answer, name not known, ...)."""


class SchedulerLost(TrioDaskError, ConnectionError):
    """The scheduler is lost, and with it the futures of its tasks."""


class ForkedClientError(TrioDaskError, RuntimeError):
    """A client, a future or a cluster was used in a forked child of the process that it belongs to."""


class ClusterError(TrioDaskError, RuntimeError):
    """A cluster could not be started or has ended; the message carries the failing program's own last words."""


class KeptCrashing(ClusterError):
    """A worker crashed more often than its nanny restarts it; the message carries the cause of the first crash."""


class KeyConflict(TrioDaskError, ValueError):
    """One key was given to two different tasks."""


class Reschedule(Exception):
    """Raise this in a task to have it run again from the start, on another worker if any other may run it.

    A task that always raises it never ends.
    """


class ActorLost(TrioDaskError, RuntimeError):
    """An actor is lost with its worker, or released; or the connection broke while it was called.

    Then nobody knows whether the call was made.
    """


class KilledWorker(TrioDaskError):
    """More workers than `--allowed-failures` (3) died while they ran a task or, for lack of memory, held its result.

    Attributes: `key`, and `deaths`, one line per attempt that says where and why.
    """

    def __init__(self, key: str, deaths: tuple[str, ...] = ()) -> None:
        super().__init__(key, deaths)
        self.key = key
        self.deaths = deaths

    def __str__(self) -> str:
        died = f"{len(self.deaths)} worker{'' if len(self.deaths) == 1 else 's'} died"
        lines = "".join(f"\n  attempt {number}: {line}" for number, line in enumerate(self.deaths, 1))
        return f"{died} while running task {self.key!r} or holding its result{lines}"


class TaskTimeout(TrioDaskError, TimeoutError):
    """A task ran longer than its `time_limit`."""


class TaskExited(TrioDaskError):
    """A task tried to end its process or its thread (`SystemExit`, `KeyboardInterrupt`, `GeneratorExit`).

    Attributes: `kind`, the name of the exception, and `code`, what `sys.exit` was given.
    """

    def __init__(self, kind: str, code: Any = None) -> None:
        super().__init__(kind, code)
        self.kind = kind
        self.code = code

    def __str__(self) -> str:
        return f"the task raised {self.kind}({'' if self.code is None else repr(self.code)})"


class TaskCancelled(TrioDaskError):
    """Raised inside a task by `check_cancelled()` once the task was cancelled."""


class SerializationError(TrioDaskError, TypeError):
    """An argument or a result cannot be pickled or unpickled; the message names its type."""


class SpillError(TrioDaskError, OSError):
    """A value that a worker has written to disk, to save memory, cannot be read back, or could not be written."""


class RemoteError(TrioDaskError):
    """Text twin of a remote exception that could not be pickled or unpickled.

    Attributes: `type_name` (qualified), `message`, and `traceback_text` as it was on the worker.
    """

    def __init__(self, type_name: str, message: str, traceback_text: str = "") -> None:
        super().__init__(type_name, message, traceback_text)
        self.type_name = type_name
        self.message = message
        self.traceback_text = traceback_text

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}" if self.message else self.type_name


class DataLost(TrioDaskError):
    """The only copy of data that cannot be recomputed (scattered by a client) is gone."""


class FutureCancelledError(TrioDaskError, CancelledError):
    """The future was cancelled, or an input of its task was, so it has no result.

    Derives from `concurrent.futures.CancelledError`; it is not a Trio cancellation.
    """

    @property
    def msg(self) -> str:
        """What is known of the reason."""
        return str(self)


class FutureLost(SchedulerLost, FutureCancelledError):
    """The future was lost with the connection to its scheduler."""
