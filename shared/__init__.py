"""What all three services stand on; imports no service."""
