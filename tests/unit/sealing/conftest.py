"""Settings for the property tests in this folder."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("no_deadline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no_deadline")  # a test must not fail because the machine is busy
