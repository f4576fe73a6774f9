"""Survey's customers, imports, settings and first login, against a real PostgreSQL."""
