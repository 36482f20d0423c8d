# Each identity gets the roles it needs, on the resource it needs them for. A role is granted on the project
# only where Google offers nothing smaller.

# The job: Dataflow's workers, and the launcher machine that builds the job from its template.
resource "google_service_account" "worker" {
  account_id   = "rehab-worker"
  display_name = "Rehab tracking: the job's workers"

  depends_on = [google_project_service.required]
}

resource "google_project_iam_member" "worker_dataflow" {
  project = var.project
  role    = "roles/dataflow.worker"
  member  = google_service_account.worker.member
}

# Load jobs, for rows that are too large to stream, and the query at the start of a rebuild.
resource "google_project_iam_member" "worker_jobs" {
  project = var.project
  role    = "roles/bigquery.jobUser"
  member  = google_service_account.worker.member
}

resource "google_pubsub_subscription_iam_member" "worker_events" {
  for_each = google_pubsub_subscription.events

  subscription = each.value.name
  role         = "roles/pubsub.subscriber"
  member       = google_service_account.worker.member
}

# Dataflow reads the acknowledgement deadline, and scales by the age of the backlog.
resource "google_pubsub_subscription_iam_member" "worker_settings" {
  for_each = google_pubsub_subscription.events

  subscription = each.value.name
  role         = "roles/pubsub.viewer"
  member       = google_service_account.worker.member
}

resource "google_pubsub_topic_iam_member" "worker_nudges" {
  topic  = google_pubsub_topic.topics["nudges"].name
  role   = "roles/pubsub.publisher"
  member = google_service_account.worker.member
}

resource "google_bigquery_table_iam_member" "worker_tables" {
  for_each = google_bigquery_table.tables

  dataset_id = each.value.dataset_id
  table_id   = each.value.table_id
  role       = "roles/bigquery.dataEditor"
  member     = google_service_account.worker.member
}

resource "google_bigquery_table_iam_member" "worker_views" {
  for_each = google_bigquery_table.views

  dataset_id = each.value.dataset_id
  table_id   = each.value.table_id
  role       = "roles/bigquery.dataViewer"
  member     = google_service_account.worker.member
}

resource "google_storage_bucket_iam_member" "worker_bucket" {
  bucket = google_storage_bucket.job.name
  role   = "roles/storage.objectAdmin"
  member = google_service_account.worker.member
}

resource "google_artifact_registry_repository_iam_member" "worker_images" {
  repository = google_artifact_registry_repository.images.name
  location   = google_artifact_registry_repository.images.location
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.worker.member
}

# Builds the images and the template; launches, updates and stops the job.
resource "google_service_account" "launcher" {
  account_id   = "rehab-launcher"
  display_name = "Rehab tracking: builds and launches the job"

  depends_on = [google_project_service.required]
}

resource "google_project_iam_member" "launcher_dataflow" {
  project = var.project
  role    = "roles/dataflow.developer"
  member  = google_service_account.launcher.member
}

resource "google_project_iam_member" "launcher_builds" {
  project = var.project
  role    = "roles/cloudbuild.builds.editor"
  member  = google_service_account.launcher.member
}

resource "google_project_iam_member" "launcher_services" {
  project = var.project
  role    = "roles/serviceusage.serviceUsageConsumer"
  member  = google_service_account.launcher.member
}

resource "google_project_iam_member" "launcher_logs" {
  project = var.project
  role    = "roles/logging.logWriter"
  member  = google_service_account.launcher.member
}

resource "google_service_account_iam_member" "launcher_worker" {
  service_account_id = google_service_account.worker.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.launcher.member
}

# Builds run as the launcher, too.
resource "google_service_account_iam_member" "launcher_itself" {
  service_account_id = google_service_account.launcher.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.launcher.member
}

resource "google_storage_bucket_iam_member" "launcher_objects" {
  bucket = google_storage_bucket.job.name
  role   = "roles/storage.objectAdmin"
  member = google_service_account.launcher.member
}

# gcloud looks up the bucket before it uploads the sources.
resource "google_storage_bucket_iam_member" "launcher_bucket" {
  bucket = google_storage_bucket.job.name
  role   = "roles/storage.legacyBucketReader"
  member = google_service_account.launcher.member
}

resource "google_artifact_registry_repository_iam_member" "launcher_images" {
  repository = google_artifact_registry_repository.images.name
  location   = google_artifact_registry_repository.images.location
  role       = "roles/artifactregistry.writer"
  member     = google_service_account.launcher.member
}

resource "google_service_account_iam_member" "operators" {
  for_each = toset(var.operators)

  service_account_id = google_service_account.launcher.name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = each.key
}

locals {
  # What therapists and analysts read. Not the dead letters, which hold whatever anybody sent.
  projections = toset(["adherence", "quality", "work_queue"])
}

# Reading a view needs no right to its tables, because the dataset's access list authorizes the views.
resource "google_bigquery_table_iam_member" "readers" {
  for_each = { for pair in setproduct(local.projections, var.readers) : "${pair[0]} ${pair[1]}" => pair }

  dataset_id = google_bigquery_dataset.rehab_tracking.dataset_id
  table_id   = google_bigquery_table.views[each.value[0]].table_id
  role       = "roles/bigquery.dataViewer"
  member     = each.value[1]
}

# The HTTP API: publishes events and reports the job's status.
resource "google_service_account" "api" {
  account_id   = "rehab-api"
  display_name = "Rehab tracking: the HTTP API"

  depends_on = [google_project_service.required]
}

resource "google_pubsub_topic_iam_member" "api_events" {
  for_each = local.sources

  topic  = google_pubsub_topic.topics["events-${each.key}"].name
  role   = "roles/pubsub.publisher"
  member = google_service_account.api.member
}

resource "google_pubsub_subscription_iam_member" "api_settings" {
  for_each = google_pubsub_subscription.events

  subscription = each.value.name
  role         = "roles/pubsub.viewer"
  member       = google_service_account.api.member
}

resource "google_project_iam_member" "api_dataflow" {
  project = var.project
  role    = "roles/dataflow.viewer"
  member  = google_service_account.api.member
}

resource "google_project_iam_member" "api_monitoring" {
  project = var.project
  role    = "roles/monitoring.viewer"
  member  = google_service_account.api.member
}

resource "google_secret_manager_secret_iam_member" "api_jwt" {
  secret_id = google_secret_manager_secret.jwt.secret_id
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.api.member
}

# Who may call the HTTP API at all. Each call also needs one of the API's own tokens.
resource "google_cloud_run_v2_service_iam_member" "callers" {
  for_each = toset(var.api_image == null ? [] : var.api_callers)

  name     = google_cloud_run_v2_service.api[0].name
  location = google_cloud_run_v2_service.api[0].location
  role     = "roles/run.invoker"
  member   = each.key
}

# Pub/Sub itself moves a message that cannot be delivered in 100 attempts.
resource "google_pubsub_topic_iam_member" "pubsub_undelivered" {
  topic  = google_pubsub_topic.topics["undelivered"].name
  role   = "roles/pubsub.publisher"
  member = google_project_service_identity.pubsub.member
}

resource "google_pubsub_subscription_iam_member" "pubsub_events" {
  for_each = google_pubsub_subscription.events

  subscription = each.value.name
  role         = "roles/pubsub.subscriber"
  member       = google_project_service_identity.pubsub.member
}
