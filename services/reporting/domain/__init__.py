"""Pure rules of reporting; imports the standard library only."""
