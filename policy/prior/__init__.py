"""What was learned before, as it is stored and as it is offered to a new fleet."""
