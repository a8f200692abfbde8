"""What is known of rows: contracts, expectations, duplicates; records of a detector, their scores and causes."""
