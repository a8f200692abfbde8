"""A team's servers: deployments, the stack of `make up`, the pages of `make ui`, and the metrics for Prometheus."""
