"""How labelled courses are scored: as the benchmarks that made them define it."""
