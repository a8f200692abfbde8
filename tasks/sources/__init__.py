"""Where rows come from: files, image archives, SQL, two simulators, and downloads of public data."""
