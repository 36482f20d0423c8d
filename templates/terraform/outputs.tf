output "worker" {
  description = "Service account of the job's workers."
  value       = google_service_account.worker.email
}

output "launcher" {
  description = "Service account that builds and launches."
  value       = google_service_account.launcher.email
}

output "images" {
  description = "Repository of the images, which are named pipeline and api."
  value       = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}"
}

output "nudge_topic" {
  description = "The topic that consumers of nudges subscribe to."
  value       = google_pubsub_topic.topics["nudges"].id
}

output "api_url" {
  description = "Address of the HTTP API, if it is deployed."
  value       = one(google_cloud_run_v2_service.api[*].uri)
}
