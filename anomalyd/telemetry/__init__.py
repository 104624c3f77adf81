"""What an operator sees: metrics, log, health. Only this package knows prometheus_client."""
