"""`anomalyd explain`: why a sample was strange, and what the network remembers of a series."""
