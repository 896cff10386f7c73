"""Volumes as they lie on the disk: records, pools and the trash."""
