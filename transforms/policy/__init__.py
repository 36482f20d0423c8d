"""The policy: thresholds, rules, findings, and what a finding leads to."""
