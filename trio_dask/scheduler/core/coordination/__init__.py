"""What programs and tasks coordinate with: locks, semaphores, events, queues, variables, as clients see them."""
