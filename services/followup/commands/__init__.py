"""What followup can be told to do; each function runs in the transaction it is given."""
