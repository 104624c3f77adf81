"""Training: makes artifacts. The daemon never imports this package; a model version is their only handshake."""
