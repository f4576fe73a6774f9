"""What can be done in survey: one transaction per command."""
