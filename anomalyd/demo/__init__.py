"""The demo: the daemon on an embedded broker, with this host's real metrics and a generated fleet whose incidents are known."""
