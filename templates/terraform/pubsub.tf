locals {
  # The log that rebuilds the projections, at Pub/Sub's maximum. A topic's retention serves each of its
  # subscriptions, so the subscriptions need not keep it a second time.
  retention = "2678400s"

  topics = {
    events-primary   = local.retention
    events-secondary = local.retention
    undelivered      = local.retention
    # Nudges can be made again from the events, and patients' data is kept in as few places as possible.
    nudges = null
  }
  sources = toset(["primary", "secondary"])
}

resource "google_pubsub_topic" "topics" {
  for_each = local.topics

  name                       = "rehab-${each.key}"
  message_retention_duration = each.value

  dynamic "message_storage_policy" {
    for_each = length(var.message_regions) > 0 ? [var.message_regions] : []
    content {
      allowed_persistence_regions = message_storage_policy.value
    }
  }

  depends_on = [google_project_service.required]
}

resource "google_pubsub_subscription" "events" {
  for_each = local.sources

  name                 = "rehab-${each.key}"
  topic                = google_pubsub_topic.topics["events-${each.key}"].id
  ack_deadline_seconds = 60

  expiration_policy {
    ttl = ""
  }

  # Every delivery counts, also one that fails through no fault of the message. So the limit is the highest that
  # Pub/Sub allows, and only a message that no worker survives ends there. Unusable events go to BigQuery.
  dead_letter_policy {
    dead_letter_topic     = google_pubsub_topic.topics["undelivered"].id
    max_delivery_attempts = 100
  }
}

# A topic without a subscription drops its messages.
resource "google_pubsub_subscription" "undelivered" {
  name                 = "rehab-undelivered"
  topic                = google_pubsub_topic.topics["undelivered"].id
  ack_deadline_seconds = 60

  expiration_policy {
    ttl = ""
  }
}

# Pub/Sub's own service agent, which forwards undelivered messages.
resource "google_project_service_identity" "pubsub" {
  provider = google-beta
  service  = "pubsub.googleapis.com"

  depends_on = [google_project_service.required]
}
