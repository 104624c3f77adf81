"""anomalyd: streaming anomaly detection for metrics on Kafka."""

__version__ = "0.1.0"
