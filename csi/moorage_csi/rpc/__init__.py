"""The CSI services: validate, guard, look whether it is done, act, answer."""
