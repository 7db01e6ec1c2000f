"""Measure trio_dask beside its rivals: the same work, the same layout, one run on one machine.

``python -m benchmarks`` prints the table; ``benchmarks/README.md`` says what is measured and how.
"""
