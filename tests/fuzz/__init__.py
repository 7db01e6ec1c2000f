"""What peers may send at worst: recorded sessions, changed in every way, against each reader of the protocol."""
