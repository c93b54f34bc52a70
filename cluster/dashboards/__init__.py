"""What Prometheus and Grafana are given: rules and dashboards as code, and their way into Grafana.

`rules` and `boards` hold them, `python -m helm.monitoring_files` writes them into the Helm chart, and `nightjar dashboards push`
brings the dashboards to a running Grafana (`grafana`).
"""
