"""Training of the learned policy in the fleet simulator, and the search for its hyper-parameters. Nothing here runs beside a load
balancer."""
