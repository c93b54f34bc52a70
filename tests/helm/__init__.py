"""The Helm chart: what it renders and what it refuses. Nothing here needs a Kubernetes cluster, and none was ever used."""
