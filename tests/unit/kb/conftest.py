"""Property tests may take their time on a busy machine: how long an example took says nothing."""

from hypothesis import HealthCheck, settings

settings.register_profile("kb", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kb")
