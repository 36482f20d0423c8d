"""Access to Google Cloud: clients, outages, files."""
