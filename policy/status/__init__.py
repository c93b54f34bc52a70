"""What operators are shown: the fleet, why one replica runs its K, and the causes of both. Reads the state, changes nothing."""
