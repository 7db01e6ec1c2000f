"""The client: `AsyncClient` for Trio, `Client` for blocking code, one core for both."""
