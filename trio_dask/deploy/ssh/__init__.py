"""A cluster on hosts that one can log in to: `dask-ssh` and `SSHCluster`."""
