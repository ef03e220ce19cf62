"""An embedded catalogue that changes: added to, removed from, filtered, compacted, exported."""
