"""Dask's collections: expressions and graphs of dask become tasks. Only this folder imports dask, when it is used."""
