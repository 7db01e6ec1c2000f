"""Names of keys in the configuration: all of distributed's, and those of ours that fill no setting.

`config` declares the names of settings.
"""

from collections.abc import Mapping
from typing import Final

OF_OPTIONS: Final[Mapping[str, str]] = {
    "scheduler": "host port log-format log-file",
    "worker": "nworkers nthreads memory-limit host interface worker-port listen-address contact-address nanny "
    "preload-nanny log-format log-file",
    "ssh": "ssh-username ssh-port ssh-private-key ssh-config ssh-client max-connecting "
    "connect-timeout scheduler-port protocol remote-python setup log-directory allow-missing log-format "
    "log-file",
}
"""By program: the options from which several settings follow, or none, and those whose settings are declared in a room
above. Each has a key of ours, of the same name."""

OF_DASK: Final = ("client-name", "scheduler-address", "temporary-directory")
"""The keys of dask itself that mean something here."""

OF_DISTRIBUTED: Final = frozenset(
    f"distributed.{room}.{name}" if room else f"distributed.{name}"
    for room, names in {
        "": "logging rmm ucx version",
        "adaptive": "interval maximum minimum target-duration wait-count",
        "admin": "event-loop large-graph-warning-threshold log-format log-length low-level-log-length max-error-length "
        "pdb-on-err system-monitor.disk system-monitor.gil.enabled system-monitor.gil.interval system-monitor.host-cpu "
        "system-monitor.interval system-monitor.log-length tick.cycle tick.interval tick.limit",
        "client": "direct-to-workers heartbeat preload preload-argv scheduler-info-interval security-loader",
        "comm": "compression default-scheme offload recent-messages-log-length require-encryption retry.count "
        "retry.delay.max retry.delay.min shard socket-backlog tcp.backend timeouts.connect timeouts.tcp tls.ca-file "
        "tls.ciphers tls.client.cert tls.client.key tls.max-version tls.min-version tls.scheduler.cert "
        "tls.scheduler.key tls.worker.cert tls.worker.key ucx websockets.shard zstd.level zstd.threads",
        "dashboard": "export-tool graph-max-items link prometheus.namespace",
        "deploy": "cluster-repr-interval lost-worker-timeout",
        "diagnostics": "computations.ignore-files computations.ignore-modules computations.max-history "
        "computations.nframes cudf erred-tasks.max-history nvml",
        "nanny": "environ pre-spawn-environ preload preload-argv",
        "p2p": "comm.buffer comm.concurrency comm.message-bytes-limit comm.retry.count comm.retry.delay.max "
        "comm.retry.delay.min disk storage.buffer storage.disk threads",
        "scheduler": "active-memory-manager.interval active-memory-manager.measure active-memory-manager.policies "
        "active-memory-manager.start allowed-failures allowed-imports bandwidth blocked-handlers contact-address "
        "dashboard.bokeh-application dashboard.status.task-stream-length dashboard.tasks.task-stream-length "
        "dashboard.tls.ca-file dashboard.tls.cert dashboard.tls.key default-data-size default-task-durations "
        "events-cleanup-delay events-log-length http.routes idle-timeout locks.lease-timeout "
        "locks.lease-validation-interval no-workers-timeout pickle preload preload-argv reuse-broadcast-comm "
        "rootish-taskgroup rootish-taskgroup-dependencies transition-log-length unknown-task-duration validate "
        "work-stealing work-stealing-interval worker-saturation worker-ttl",
        "worker": "blocked-handlers connections.incoming connections.outgoing daemon http.routes lifetime.duration "
        "lifetime.restart lifetime.stagger memory.max-spill memory.monitor-interval memory.pause "
        "memory.rebalance.measure memory.rebalance.recipient-max memory.rebalance.sender-min "
        "memory.rebalance.sender-recipient-gap memory.recent-to-old-time memory.shared memory.spill "
        "memory.spill-compression memory.target memory.terminate memory.transfer multiprocessing-method preload "
        "preload-argv profile.cycle profile.enabled profile.interval profile.low-level resources "
        "transfer.message-bytes-limit use-file-locking validate",
    }.items()
    for name in names.split()
)

OPEN_KEYS: Final = (
    "distributed.comm.ucx",
    "distributed.logging",
    "distributed.nanny.environ",
    "distributed.nanny.pre-spawn-environ",
    "distributed.rmm",
    "distributed.scheduler.dashboard.bokeh-application",
    "distributed.scheduler.default-task-durations",
    "distributed.ucx",
    "distributed.worker.resources",
    "trio-dask.env",
    "trio-dask.resources",
    "trio-dask.worker.env",
    "trio-dask.worker.resources",
)
"""Below these stand names that users choose. (Without a difference between `-` and `_`, as keys are found.)"""
