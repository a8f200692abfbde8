"""Where rows come from: files, archives of images, SQL, two simulators, and the fetching of public data."""
