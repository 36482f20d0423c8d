"""What speaks to Google: clients, outages, files."""
