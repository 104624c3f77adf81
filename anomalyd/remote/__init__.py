"""Scores for a store of time series: Prometheus' remote write."""
