"""State on Kafka: what is written to a changelog topic, and the protocol that ties it to a position of the input."""
