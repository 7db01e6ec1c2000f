"""The worker: runs tasks, keeps their results, serves them to peers and clients."""
