"""Moves the balancer weights: state, policy, guard, snapshot, targets."""
