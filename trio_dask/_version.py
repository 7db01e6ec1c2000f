"""The one place that knows the version; the build, the hello and ``--version`` read it here."""

__version__ = "0.1.0"
