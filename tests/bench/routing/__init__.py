"""`make bench-routing`: every policy, over every balancer, against what good operators run, in the fleet simulator
(docs/routing-simulated.md)."""
