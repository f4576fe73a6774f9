"""The three services of the loop: survey asks, followup calls back and tells, reporting measures."""
