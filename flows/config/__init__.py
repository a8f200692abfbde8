"""What params.yaml and the environment say, read once into frozen sections, and how `nightjar init` writes them."""
