"""Who belongs to a cluster: its key, and how both ends of a connection prove that they have it."""
