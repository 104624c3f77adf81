"""From scores to alerts: episodes of series, the messages that tell of them, and where messages go."""
