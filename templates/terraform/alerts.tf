locals {
  alerts = {
    backlog = {
      title    = "Rehab tracking: events wait"
      query    = "${local.backlog_age} > ${var.backlog_age_seconds}"
      severity = "CRITICAL"
      text     = "The oldest event of a subscription has waited for more than ${var.backlog_age_seconds} s. Nothing is lost: Pub/Sub keeps events for 31 days. Check the job: is it running, has it reached its maximum number of workers, does BigQuery refuse or slow down writes?"
    }
    dead_letters = {
      title    = "Rehab tracking: dead letters"
      query    = "100 * sum(${local.added["dead_letter"]}) / sum(${local.added["ended"]}) > ${var.dead_letter_percent}"
      severity = "WARNING"
      text     = "More than ${var.dead_letter_percent} of 100 events could not be used in the last ten minutes. dead_letters_current says why, and keeps what arrived."
    }
    undelivered = {
      title    = "Rehab tracking: events that could not be delivered"
      query    = "${local.moved} > 0"
      severity = "CRITICAL"
      text     = "Pub/Sub delivered events 100 times and the job confirmed none of the deliveries. They wait, for 31 days, in the subscription rehab-undelivered and are in no projection. When the job works again, publish them again."
    }
    event_to_write = {
      title    = "Rehab tracking: rows are written late"
      query    = "${local.event_to_write["0.95"]} > ${var.event_to_write_p95_ms}"
      severity = "WARNING"
      text     = "5 of 100 rows took longer than ${var.event_to_write_p95_ms} ms from publish to written in the last ten minutes. Compare the backlog, the number of workers and how long BigQuery takes (write_ms)."
    }
    job_down = {
      title    = "Rehab tracking: no job"
      query    = local.gone
      severity = "CRITICAL"
      text     = "No job rehab-tracking has reported for ten minutes. If it has failed, its log says why. Launch it again, with rebuild_days, because its state is gone."
    }
  }
}

resource "google_monitoring_notification_channel" "email" {
  for_each = toset(var.alert_emails)

  display_name = each.key
  type         = "email"
  labels       = { email_address = each.key }

  depends_on = [google_project_service.required]
}

resource "google_monitoring_alert_policy" "alerts" {
  for_each = local.alerts

  display_name          = each.value.title
  combiner              = "OR"
  severity              = each.value.severity
  notification_channels = [for channel in google_monitoring_notification_channel.email : channel.id]

  conditions {
    display_name = each.value.title

    condition_prometheus_query_language {
      query               = each.value.query
      duration            = "300s"
      evaluation_interval = "60s"
      # Before the first job has run, Cloud Monitoring does not know its metrics.
      disable_metric_validation = true
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = each.value.text
  }

  depends_on = [google_project_service.required]
}
