"""How properties are tried here: without a time for each example, which a busy machine would decide about."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
