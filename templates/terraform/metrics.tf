# Queries (PromQL) that the alerts and the dashboard share.
locals {
  # The job's own counters. Their names in Cloud Monitoring are the job's, without the namespace.
  counters = {
    dead_letter = "event[.]dead_letter[.].+"
    ended       = "event[.]((processed|dead_letter)[.].+|duplicate|withheld|too_late)"
    rows        = "event_to_write_ms[.]le[.]inf"
    rows_within = "event_to_write_ms[.]le[.].+"
    batches     = "batch[.]processed[.].+"
    nudges      = "(nudge|alert|feedback|emergency)[.]generated[.].+"
  }
  series = {
    for name, pattern in local.counters :
    name => "dataflow_googleapis_com:job_user_counter{monitored_resource=\"dataflow_job\", job_name=\"rehab-tracking\", metric_name=~\"${pattern}\"}"
  }

  # The increase of each counter over ten minutes. Counters are running totals, one per counting step. A total
  # that does not exist yet counts as 0, and so does the start of the job that follows an update.
  total = { for name, series in local.series : name => "sum by (job_id, metric_name) (${series})" }
  added = {
    for name, series in local.series :
    name => "sum by (metric_name) (${local.total[name]} - (sum by (job_id, metric_name) (${series} offset 10m) or 0 * ${local.total[name]}))"
  }

  # The job counts rows by latency bound. A bound that no row has met is missing, and without the highest one
  # there would be no percentile just when latency is worst.
  bounds         = "label_replace(label_replace(${local.added["rows_within"]}, \"le\", \"$1\", \"metric_name\", \"event_to_write_ms[.]le[.](.+)\"), \"le\", \"+Inf\", \"le\", \"inf\")"
  histogram      = "sum by (le) (${local.bounds}) or label_replace(0 * sum(${local.added["rows"]}), \"le\", \"30000\", \"\", \"\")"
  event_to_write = { for share in ["0.5", "0.95", "0.99"] : share => "histogram_quantile(${share}, ${local.histogram})" }

  subscriptions = "monitored_resource=\"pubsub_subscription\", subscription_id=~\"rehab-(primary|secondary)\""
  undelivered   = "monitored_resource=\"pubsub_subscription\", subscription_id=\"rehab-undelivered\""
  job           = "monitored_resource=\"dataflow_job\", job_name=\"rehab-tracking\""

  backlog_age = "max by (subscription_id) (pubsub_googleapis_com:subscription_oldest_unacked_message_age{${local.subscriptions}})"
  backlog     = "sum by (subscription_id) (pubsub_googleapis_com:subscription_num_undelivered_messages{${local.subscriptions}})"
  moved       = "sum(pubsub_googleapis_com:subscription_num_undelivered_messages{${local.undelivered}})"
  system_lag  = "max(dataflow_googleapis_com:job_system_lag{${local.job}})"
  vcpus       = "sum(dataflow_googleapis_com:job_current_num_vcpus{${local.job}})"
  api         = "sum by (response_code_class) (rate(run_googleapis_com:request_count{monitored_resource=\"cloud_run_revision\", service_name=\"rehab-api\"}[5m]))"
  gone        = "count(max_over_time(dataflow_googleapis_com:job_system_lag{${local.job}}[23h])) unless count(max_over_time(dataflow_googleapis_com:job_system_lag{${local.job}}[10m]))"
}
