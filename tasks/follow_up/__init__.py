"""What happens after a night is published: cases, suppressions and alerts."""
