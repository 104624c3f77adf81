"""`anomalyd retrain`: keeps a bounded sample of the streams, trains challengers and publishes those that prove better than the champion."""
