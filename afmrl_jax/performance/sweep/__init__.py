"""The parts of `afmrl bench throughput` and `afmrl bench scaling`."""
