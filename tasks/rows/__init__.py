"""Everything about rows: contracts, expectations and duplicates; a detector's records, their scores and causes."""
