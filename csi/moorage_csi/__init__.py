"""The driver: a CSI service for the volumes of one node, on its own disks."""
