"""The contract: the messages between the services, and how columns are packed into them."""
