"""What a restart costs and earns, and who gets a lease."""
