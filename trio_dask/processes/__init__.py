"""Processes of this machine: start one, learn that it is ready, watch it, end it."""
