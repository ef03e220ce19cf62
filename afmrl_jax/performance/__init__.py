"""What a program costs: memory, operations, traffic between devices, and benchmarks."""
