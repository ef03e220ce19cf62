"""What the steps of the method do to the results."""
