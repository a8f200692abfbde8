"""The commands of `nightjar`, a file for each kind of work; heavy imports happen inside them."""
