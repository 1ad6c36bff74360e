"""Words, names, facts and sentence parts that the generator combines; written for it, without other sources."""
