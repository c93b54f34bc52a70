"""What people set beside the settings: modes by hand, a freeze, a canary."""
