"""Who belongs to a cluster: its key, certificates, and what both sides of a connection prove."""
