"""The local mailbox: a provider's stand-in that keeps every message to be read, clicked and answered."""
