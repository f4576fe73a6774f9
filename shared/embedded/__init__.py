"""Everything on one machine: PostgreSQL, the process manager, and the mounted web app."""
