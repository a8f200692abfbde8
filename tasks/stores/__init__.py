"""Where things are kept: the lake, the warehouse and the registry, and how their failures become errors of ours."""
