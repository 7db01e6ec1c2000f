"""What plugins of workers and nannies derive from."""

from __future__ import annotations

from typing import Any, ClassVar


class WorkerPlugin:
    """Code that each worker runs when it begins, and when it ends: register it with `client.register_plugin`.

        class Model(WorkerPlugin):
            def setup(self, worker):
                worker.state["model"] = load()

    Every method is a plain function, called in a thread, or (not `transition`) an `async def` one, which runs under
    Trio. `worker` is what `get_worker()` gives in a task.

    Attributes:
      name: of the plugin, if it is not given to `register_plugin`; a plugin of the same name is replaced.
      idempotent: whether, instead of that, the one that is there stays.
    """

    idempotent: bool = False

    def setup(self, worker: Any) -> Any:
        """The worker is about to take tasks, or the plugin was registered just now."""

    def teardown(self, worker: Any) -> Any:
        """The worker ends in good order, or the plugin was unregistered or replaced."""

    def transition(self, key: str, start: str, finish: str) -> None:
        """A task takes a step on this worker; called in a thread of its own, in order, a moment after.

        The states are waiting, ready, executing, memory, error, released and forgotten.
        """


class NannyPlugin:
    """Code that each nanny runs before it starts its worker's process: register it with `client.register_plugin`.

    As for `WorkerPlugin`, and `nanny` is a `NannyHandle`, whose `env` are variables for the worker's processes.

    Attributes:
      restart: whether a worker that runs already gets a new process once the plugin is set up.
    """

    idempotent: bool = False
    restart: bool = False

    def setup(self, nanny: Any) -> Any:
        """The nanny is about to start its worker, or the plugin was registered just now."""

    def teardown(self, nanny: Any) -> Any:
        """The nanny ends, or the plugin was unregistered or replaced."""


class Environ(NannyPlugin):
    """Variables in the environment of all workers with a nanny; those that run get new processes."""

    restart: ClassVar[bool] = True  # type: ignore[misc] # of all of them

    def __init__(self, environ: dict[str, Any] | None = None) -> None:
        self.environ = {name: str(value) for name, value in (environ or {}).items()}

    def setup(self, nanny: Any) -> None:
        """Have the nanny's next process get them."""
        nanny.env.update(self.environ)
