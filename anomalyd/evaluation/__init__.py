"""The production engine over history: reading files, streaming them through the shard, measuring and reporting."""
