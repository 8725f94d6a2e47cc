"""One file per suite. Each has `prepare(workshop)`, which fetches and builds and is called once,
and `run(workshop, target)`, which returns an Outcome for each test id."""
