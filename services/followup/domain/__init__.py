"""Pure rules of followup; imports the standard library only."""
