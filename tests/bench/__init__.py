"""`make bench`: what the product does beside the least that could do the same, in one run, as ratios."""
