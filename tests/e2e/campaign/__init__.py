"""A fault campaign: faults of every class against a real fleet, many times over, and how well trimtab tells them."""
