"""What can be read of survey."""
