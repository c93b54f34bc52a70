"""What people see in a terminal: the fleet and an explanation as tables, times as they type them. Pure."""
