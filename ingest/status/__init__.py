"""How the pipeline is: what its job reports, judged, and told over HTTP."""
