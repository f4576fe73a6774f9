"""What followup can be asked; nothing here writes."""
