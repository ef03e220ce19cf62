"""The whole method as a run, and what each command does with one."""
