"""The worker: runs tasks, keeps their results, serves them to whoever needs them."""
