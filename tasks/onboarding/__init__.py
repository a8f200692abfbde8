"""What `nightjar init` makes of a look at new data: columns, days, and a drafted detector."""
