"""What holds for all tests."""

from hypothesis import settings

# How long one example takes depends on what else the machine does; a test that hangs is ended by pytest's timeout.
settings.register_profile("trio_dask", deadline=None)
settings.load_profile("trio_dask")
