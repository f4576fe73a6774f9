"""Followup's HTTP API, described in its OpenAPI document."""
