"""Which steps may be retried: one task a verb, one library call each."""
