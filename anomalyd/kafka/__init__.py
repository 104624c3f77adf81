"""Everything that speaks Kafka: the consumer, the producer, the checkpoint and topics. The only place that imports a Kafka client."""
