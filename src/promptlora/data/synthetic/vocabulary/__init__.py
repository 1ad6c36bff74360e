"""Words, names, facts and sentence parts that the generator puts together; written for it, no other source."""
