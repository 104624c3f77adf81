"""`anomalyd notify`: brings the alerts of the alerts topic to Alertmanager."""
