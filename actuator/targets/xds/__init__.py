"""xDS: endpoints and their weights for Envoy and for gRPC's own xds:/// clients."""
