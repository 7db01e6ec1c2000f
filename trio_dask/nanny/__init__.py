"""A nanny starts the process of one worker, watches it, reports its death, and starts the next one."""
