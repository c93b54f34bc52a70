"""A simulated service: many engines, who asks them, and the control plane that steers them."""
