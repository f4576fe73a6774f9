"""Pure rules of survey; imports the standard library only."""
