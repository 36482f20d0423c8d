# Either this or templates/launch.sh runs the job, not both: Dataflow allows one active job per name.
resource "google_dataflow_flex_template_job" "rehab_tracking" {
  provider = google-beta
  count    = var.run_job ? 1 : 0

  name                    = "rehab-tracking"
  region                  = var.region
  container_spec_gcs_path = "gs://${google_storage_bucket.job.name}/templates/rehab-tracking.json"
  temp_location           = "gs://${google_storage_bucket.job.name}/temp"
  staging_location        = "gs://${google_storage_bucket.job.name}/staging"
  service_account_email   = google_service_account.worker.email
  enable_streaming_engine = true
  max_workers             = var.max_workers
  subnetwork              = var.subnetwork
  ip_configuration        = var.subnetwork == null ? "WORKER_IP_PUBLIC" : "WORKER_IP_PRIVATE"
  on_delete               = "drain"

  parameters = merge(var.job_parameters, {
    primary_subscription   = google_pubsub_subscription.events["primary"].id
    secondary_subscription = google_pubsub_subscription.events["secondary"].id
    nudge_topic            = google_pubsub_topic.topics["nudges"].id
    dataset                = local.dataset
  })

  # A worker without its roles starts and fails.
  depends_on = [
    google_artifact_registry_repository_iam_member.worker_images,
    google_bigquery_table_iam_member.worker_tables,
    google_bigquery_table_iam_member.worker_views,
    google_project_iam_member.worker_dataflow,
    google_project_iam_member.worker_jobs,
    google_pubsub_subscription_iam_member.worker_events,
    google_pubsub_subscription_iam_member.worker_settings,
    google_pubsub_topic_iam_member.worker_nudges,
    google_storage_bucket_iam_member.worker_bucket,
  ]
}
