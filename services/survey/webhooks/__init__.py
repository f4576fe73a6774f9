"""What providers post to us: signed, checked over what was sent, each event with one effect."""
