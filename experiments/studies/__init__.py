"""The effect of the method's steps on the results."""
