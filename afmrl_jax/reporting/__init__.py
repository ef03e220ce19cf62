"""What a run found, for people: tables, curves and the self-contained HTML report."""
