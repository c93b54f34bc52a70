"""A simulated service: many engines, who asks them, and the control plane that steers them.

A `scenario` says all of it and `simulate` runs it on one `timeline`: `workload` asks, in `lengths` as published, `router` chooses
among the `fleet`, which `autoscaler` makes larger or smaller, and `control_plane` carries reports and settings, where wanted with
`lies`. `measures` looks on; what a run gives is in `results`.
"""
