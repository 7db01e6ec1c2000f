"""Processes of this machine: how one is started, told that it is ready, watched and ended."""
