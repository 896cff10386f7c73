"""The effects: what the deciding part wants done, done to the API server and the driver."""
