"""What `afmrl bench` measures."""
