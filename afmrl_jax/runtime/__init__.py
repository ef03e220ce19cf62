"""Files, processes, logs and compiled programs: what every long job needs."""
