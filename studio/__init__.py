"""lisa-preflight's page: advice, data, training, answers and runs in a browser, on this machine."""
