"""Every setting of the system."""
