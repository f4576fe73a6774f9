"""Survey's HTTP APIs."""
