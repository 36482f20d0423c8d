"""The stream on one machine, from simulated patients to checked tables: the program behind `run_local.sh`."""
