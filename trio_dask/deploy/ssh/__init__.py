"""Clusters on hosts that one can log in to with SSH."""
