"""Contract suites, fakes and fault injection: they ship, so that other drivers can be held to them."""
