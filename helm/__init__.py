"""The Helm chart (nightjar/), and the two tools that keep it: the helm command line and the reference of its values."""
