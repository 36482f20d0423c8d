locals {
  # The log that rebuilds the projections, at Pub/Sub's maximum. A topic's retention serves each of its
  # subscriptions, so the subscriptions need not keep it a second time.
  retention = "2678400s"

  topics = {
    events-primary   = local.retention
    events-secondary = local.retention
    undelivered      = local.retention
    # Nudges can be made again from the events; a patient's data is kept in no more places than needed.
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

  # Every delivery counts, also one that failed through no fault of the message: as many as Pub/Sub allows, so
  # that only a message that no worker survives ends there. What is merely unusable goes to BigQuery.
  dead_letter_policy {
    dead_letter_topic     = google_pubsub_topic.topics["undelivered"].id
    max_delivery_attempts = 100
  }
}

# Without it the topic would drop what it gets.
resource "google_pubsub_subscription" "undelivered" {
  name                 = "rehab-undelivered"
  topic                = google_pubsub_topic.topics["undelivered"].id
  ack_deadline_seconds = 60

  expiration_policy {
    ttl = ""
  }
}

# Who forwards what is undelivered: Pub/Sub itself.
resource "google_project_service_identity" "pubsub" {
  provider = google-beta
  service  = "pubsub.googleapis.com"

  depends_on = [google_project_service.required]
}
