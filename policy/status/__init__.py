"""What operators are shown: the fleet, why one replica runs its K, and the causes that both name. Reads the state, changes nothing."""
