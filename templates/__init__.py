"""What is deployed beside the code: BigQuery tables and views."""
