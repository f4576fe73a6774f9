"""Events: their catalog, and their way from an outbox through the log to one effect."""
