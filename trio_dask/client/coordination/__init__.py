"""Locks, events, queues and the like, for blocking programs and tasks and for those under Trio."""
