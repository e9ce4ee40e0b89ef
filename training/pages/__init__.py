"""Two local pages on which people decide: curation of a variant, and preference between two sets of pictures."""
